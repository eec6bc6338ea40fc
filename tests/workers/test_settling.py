"""Jobs that end while Redis is away: what becomes of them, and that nobody waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
from checkpoint_harness import LONG, turn
from engine_harness import Bench, Clock, MemorySink, claimed

from jobs.connections import SOCKET_TIMEOUT
from jobs.errors import StoreUnavailable
from jobs.lease import RETRY_SECONDS, LeaseClient
from jobs.types import ClaimedJob, Outcome, Progress, Status, Verdict
from workers.heartbeat import Pulse
from workers.steady_sink import SteadySink


class Lease:
    """Passes on to a sink unless it is away; then every call fails after `timeout` seconds."""

    def __init__(self, sink: MemorySink, clock: Clock, timeout: float) -> None:
        self.is_away = False
        self.is_fenced_off = False
        self._sink = sink
        self._clock = clock
        self._timeout = timeout

    def report(self, updates: Sequence[Progress], *, retry_seconds: float) -> list[Verdict]:
        self._ask()
        return self._sink.report(updates)

    def finish(self, job: ClaimedJob, outcome: Outcome, *, retry_seconds: float) -> bool:
        self._ask()
        return not self.is_fenced_off and self._sink.finish(job, outcome)

    def _ask(self) -> None:
        if self.is_away:
            self._clock.wait(self._timeout)
            raise StoreUnavailable("away")


class Scene:
    """An engine at ten steps a second over such a lease, and a long job of another batch."""

    def __init__(self, timeout: float = 0.0, *, with_other: bool = True) -> None:
        def over(sink: MemorySink, clock: Clock) -> SteadySink:
            self.lease = Lease(sink, clock, timeout)
            self.steady = SteadySink(cast("LeaseClient", self.lease), Pulse(), clock=clock)
            return self.steady

        self.bench = Bench(over=over, checkpoint_seconds=1.0)
        self.engine = self.bench.engine
        self.other = claimed(num_inference_steps=1000, width=128)
        if with_other:
            self.engine.admit(self.other)

    def end_away(self, prompt: str = "a word", *, steps: int = 4) -> ClaimedJob:
        """A job that ends when Redis has just gone away."""
        job = claimed(prompt, num_inference_steps=steps)
        self.engine.admit(job)
        self.lease.is_away = True
        while job.execution_id in self.engine._members:
            self.engine.turn()
        return job

    def come_back(self) -> None:
        """Redis is back, and the heartbeat hears so."""
        self.lease.is_away = False
        self.bench.clock.wait(0.1)
        self.steady.note_answer()
        self.engine.turn()


@pytest.mark.parametrize("timeout", [0.0, SOCKET_TIMEOUT])
def test_others_step_on_while_an_outcome_waits_for_redis(timeout: float) -> None:
    scene = Scene(timeout)
    job = scene.end_away()
    clock, batches = scene.bench.clock, scene.bench.pipeline.batches
    started, before = clock.now, len(batches)
    while clock.now < started + 40.0:
        scene.engine.turn()
    assert len(batches) - before >= 0.9 * 400
    assert set(map(id, scene.engine.held())) == {id(job), id(scene.other)}
    scene.come_back()
    assert scene.bench.sink.status(job) is Status.SUCCEEDED
    assert scene.engine.held() == (scene.other,)


@pytest.mark.parametrize(
    ("prompt", "status"),
    [("a word", Status.SUCCEEDED), ("fail-step", Status.FAILED), ("nan", Status.FAILED)],
)
def test_a_job_that_has_ended_is_held_until_that_is_told(prompt: str, status: Status) -> None:
    scene = Scene(with_other=False)
    job = scene.end_away(prompt)
    assert not scene.engine.is_idle
    assert scene.engine.held() == (job,)
    assert scene.engine.hopeless(0.0) == []
    turn(scene.bench, 3)
    assert scene.bench.sink.outcomes == {}
    scene.come_back()
    assert scene.bench.sink.status(job) is status
    assert scene.engine.is_idle


@pytest.mark.parametrize("verdict", [Verdict.CANCEL, Verdict.LEASE_LOST])
def test_a_result_that_was_there_first_is_offered_whatever_comes_later(verdict: Verdict) -> None:
    scene = Scene()
    job = scene.end_away()
    scene.engine.post(job, verdict)
    turn(scene.bench, 1)
    scene.come_back()
    assert scene.bench.sink.status(job) is Status.SUCCEEDED


def test_a_cancel_heard_while_redis_is_away_ends_the_job_once() -> None:
    scene = Scene()
    job = claimed(num_inference_steps=LONG)
    scene.engine.admit(job)
    turn(scene.bench, 4)
    scene.lease.is_away = True
    scene.engine.post(job, Verdict.CANCEL)
    turn(scene.bench, 2)
    batches = len(scene.bench.pipeline.batches)
    turn(scene.bench, 2)
    assert scene.bench.pipeline.batches[batches:] == 2 * [[scene.other.input["seed"]]]
    scene.come_back()
    assert scene.bench.sink.status(job) is Status.CANCELLED


def test_an_outcome_whose_lease_was_lost_meanwhile_is_dropped() -> None:
    scene = Scene(with_other=False)
    job = scene.end_away(steps=LONG)
    checkpoints = dict(scene.bench.checkpoints)
    assert checkpoints
    scene.lease.is_fenced_off = True
    scene.come_back()
    assert scene.engine.is_idle
    assert scene.bench.sink.status(job) is None
    assert scene.bench.checkpoints == checkpoints, "whoever goes on with the job needs them"


def test_the_checkpoints_of_a_job_stay_until_its_outcome_is_told() -> None:
    scene = Scene(with_other=False)
    scene.end_away(steps=40)
    assert scene.bench.checkpoints
    scene.come_back()
    assert scene.bench.checkpoints == {}


@pytest.mark.parametrize("timeout", [0.0, SOCKET_TIMEOUT])
def test_after_a_minute_outcomes_are_given_up_with_all_that_is_held(timeout: float) -> None:
    scene = Scene(timeout)
    job = scene.end_away()
    with pytest.raises(StoreUnavailable):
        turn(scene.bench, int(10 * RETRY_SECONDS) + 10)
    assert [dropped for dropped, _ in scene.engine.evict()] == [job, scene.other]
    assert scene.engine.is_idle
    scene.come_back()
    assert scene.bench.sink.outcomes == {}
