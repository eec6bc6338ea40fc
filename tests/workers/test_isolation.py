"""Who runs alone, who makes room for whom, and that nobody waits for it longer than is promised."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from engine_harness import Bench, claimed

from jobs.lease import ALLOWANCE_SECONDS
from jobs.types import Checkpoint, ClaimedJob, Priority, Status, Usage
from workers.isolation import MADE_ROOM, Isolation, must_be_alone

INTERACTIVE, STANDARD, BATCH = Priority
MAX_ATTEMPTS = 3


def suspect(priority: Priority = STANDARD, **fields: object) -> ClaimedJob:
    return replace(claimed(priority=priority, **fields), attempt=MAX_ATTEMPTS)  # type: ignore[arg-type]


class Desk:
    """A worker's loop over queues in memory: claim one job that is open, turn."""

    def __init__(self, choose: random.Random | None = None) -> None:
        self.bench = Bench(seconds=lambda images: 1.0)
        self.engine, self.sink, self.clock = self.bench.engine, self.bench.sink, self.bench.clock
        self.isolation = Isolation(self, MAX_ATTEMPTS, clock=self.clock)
        self.queues: dict[Priority, list[ClaimedJob]] = {priority: [] for priority in Priority}
        self.requeued: list[tuple[ClaimedJob, float]] = []
        self._choose = choose

    def put(self, *jobs: ClaimedJob) -> None:
        for job in jobs:
            self.queues[job.priority].append(job)

    def requeue(self, job: ClaimedJob, cause: str, refund_attempt: bool, usage: Usage) -> bool:
        assert (cause, refund_attempt) == (MADE_ROOM, True)
        self.requeued.append((job, self.clock()))
        # The next execution goes on from where the checkpoint stands.
        again = f"{job.execution_id}+"
        checkpoint: Checkpoint | None = self.bench.recorder.pointers.get(job.id)
        self.queues[job.priority].insert(
            0, replace(job, execution_id=again, checkpoint=checkpoint or job.checkpoint)
        )
        return True

    def names(self) -> list[str]:
        return [job.id for job, _ in self.requeued]

    def go_on(self, turns: int = 1) -> None:
        for _ in range(turns):
            ranks = min(self.isolation.open_ranks(self.engine), self.engine.open_ranks())
            waiting = [p for p in [*Priority][:ranks] if self.queues[p]]
            if waiting:
                lane = self._choose.choice(waiting) if self._choose else waiting[-1]
                job = self.queues[lane].pop(0)
                if self.isolation.let_in(job, self.engine):
                    self.engine.admit(job)
            held = self.engine.held()
            assert len(held) == 1 or not any(must_be_alone(j, MAX_ATTEMPTS) for j in held)
            self.engine.turn()

    def holds(self, *jobs: ClaimedJob) -> bool:
        return [job.id for job in self.engine.held()] == [job.id for job in jobs]


@pytest.mark.parametrize(
    ("max_attempts", "alone"),
    [(1, []), (2, [2]), (3, [3]), (5, [3, 4, 5]), (8, [3, 4, 5, 6, 7, 8])],
)
def test_suspects_run_alone_and_first_attempts_never(max_attempts: int, alone: list[int]) -> None:
    jobs = [replace(claimed(), attempt=attempt) for attempt in range(1, max_attempts + 1)]
    assert [job.attempt for job in jobs if must_be_alone(job, max_attempts)] == alone


def test_a_suspect_has_those_leave_that_are_no_more_urgent_each_with_its_checkpoint() -> None:
    desk = Desk()
    others = [claimed(priority=p, num_inference_steps=100) for p in (STANDARD, BATCH)]
    alone = suspect(num_inference_steps=3)
    for job in others:
        desk.engine.admit(job)
    for _ in range(12):
        desk.engine.turn()
    assert desk.isolation.let_in(alone, desk.engine)
    assert desk.engine.held() == ()
    assert [desk.queues[job.priority][0].id for job in others] == [job.id for job in others]
    assert all(desk.bench.recorder.pointers[job.id].step > 0 for job in others)
    desk.engine.admit(alone)
    desk.go_on(3)
    assert desk.sink.status(alone) is Status.SUCCEEDED


def test_a_suspect_less_urgent_than_what_is_held_goes_back_itself_and_its_class_waits() -> None:
    desk = Desk()
    urgent = claimed(priority=INTERACTIVE, num_inference_steps=20)
    alone, behind = suspect(num_inference_steps=2), claimed(num_inference_steps=1)
    desk.put(urgent)
    desk.go_on(5)
    assert desk.isolation.open_ranks(desk.engine) == len(Priority)
    desk.put(alone, behind)
    desk.go_on(10)
    assert desk.holds(urgent)
    assert desk.names() == [alone.id]
    more = claimed(priority=INTERACTIVE, num_inference_steps=1)
    desk.put(more)
    desk.go_on(20)
    assert desk.sink.order == [more.id, urgent.id, alone.id, behind.id]
    assert desk.names() == [alone.id]


def test_a_suspect_that_runs_gives_way_to_more_urgent_jobs_once_it_has_taken_a_step() -> None:
    desk = Desk()
    alone = suspect(BATCH, num_inference_steps=10)
    urgent = claimed(num_inference_steps=12)
    desk.engine.admit(alone)
    desk.put(urgent, claimed(priority=BATCH, num_inference_steps=1))
    assert desk.isolation.open_ranks(desk.engine) == 0
    desk.engine.turn()
    desk.go_on()
    assert desk.holds(urgent)
    assert desk.bench.recorder.pointers[alone.id].step == 1
    desk.go_on(30)
    assert desk.sink.order[:2] == [urgent.id, alone.id]
    assert desk.names() == [alone.id]
    assert desk.sink.outcomes[alone.id].usage.steps == 9


@pytest.mark.parametrize(("priority", "steps"), [(STANDARD, 5), (BATCH, 2)])
def test_under_an_endless_stream_of_urgent_jobs_a_suspect_takes_a_step_in_every_allowance(
    priority: Priority, steps: int
) -> None:
    desk = Desk()
    allowance = ALLOWANCE_SECONDS[priority]
    alone = suspect(priority, num_inference_steps=steps)
    turns = 0
    while desk.sink.status(alone) is None:
        while len(desk.queues[INTERACTIVE]) < 2:
            desk.put(claimed(priority=INTERACTIVE, num_inference_steps=7))
        desk.go_on()
        turns += 1
        if turns == 3:
            desk.put(alone)
        assert turns < steps * (allowance + 5)
    made_room = sorted({at for job, at in desk.requeued if job.id != alone.id})
    assert made_room
    assert all(b - a >= allowance for a, b in itertools.pairwise(made_room))


@pytest.mark.parametrize("seed", range(3))
def test_a_suspect_never_meets_anybody_and_everybody_comes_to_an_end(seed: int) -> None:
    chance = random.Random(seed)
    desk = Desk(chance)
    jobs = []
    for _ in range(400):
        if chance.random() < 0.1:
            job = claimed(priority=chance.choice([*Priority]), num_inference_steps=3)
            jobs.append(replace(job, attempt=chance.choice([1, 2, MAX_ATTEMPTS])))
            desk.put(jobs[-1])
        desk.go_on()
    desk.go_on(1000)
    assert sorted(desk.sink.order) == sorted(job.id for job in jobs)


def test_what_an_unanswered_claim_brings_late_does_not_meet_a_suspect_either() -> None:
    desk = Desk()
    alone, late = suspect(), claimed()
    desk.engine.admit(alone)
    assert not desk.isolation.let_in(late, desk.engine)
    assert desk.holds(alone)
    assert desk.names() == [late.id]
