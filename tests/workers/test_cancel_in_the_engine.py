"""Cancels inside the engine: how soon they are heard, and that they disturb nobody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from engine_harness import Bench, claimed

from jobs.types import ClaimedJob, Stage, Status, Verdict
from models.errors import Cancelled
from models.pipeline import KeepGoing


def post_within(bench: Bench, method: str, *told: tuple[ClaimedJob, Verdict]) -> list[str]:
    """Let the heartbeat bring verdicts in the middle of `method`; the log of what came of it."""
    log: list[str] = []

    def on_piece(name: str, keep_going: KeepGoing) -> None:
        if name != method:
            return
        log.append("begun")
        for job, verdict in told:
            bench.engine.post(job, verdict)
        keep_going()
        log.append("went on")

    bench.pipeline.on_piece = on_piece
    return log


@pytest.mark.parametrize("method", ["prepare", "step", "decode"])
def test_a_cancel_is_heard_between_the_pieces_of_long_work(method: str) -> None:
    bench, job = Bench(), claimed(num_inference_steps=3)
    log = post_within(bench, method, (job, Verdict.CANCEL))
    bench.run(job)
    assert log == ["begun"]
    assert bench.sink.status(job) is Status.CANCELLED
    assert not bench.blobs
    # The next one finds everything as it was.
    bench.pipeline.on_piece = lambda name, keep_going: keep_going()
    other, alone = claimed(seed=3), Bench()
    bench.run(other)
    alone.run(other)
    assert dict(bench.blobs) == dict(alone.blobs)


@pytest.mark.parametrize("method", ["prepare", "step", "decode"])
def test_a_lost_lease_ends_long_work_without_a_word(method: str) -> None:
    bench, job = Bench(), claimed(num_inference_steps=3)
    post_within(bench, method, (job, Verdict.LEASE_LOST))
    bench.run(job)
    assert bench.sink.outcomes == {}


def test_work_that_was_left_is_paid_for() -> None:
    bench, job = Bench(seconds=lambda images: 2.0), claimed(num_inference_steps=3)
    post_within(bench, "step", (job, Verdict.CANCEL))
    bench.run(job)
    usage = bench.sink.outcomes[job.id].usage
    assert (usage.steps, usage.gpu_seconds) == (0, 2.0)


def test_every_piece_of_long_work_shows_that_the_worker_lives() -> None:
    bench, job = Bench(), claimed(num_inference_steps=1)
    signs: list[str] = []
    bench.engine._verdicts._alive = lambda: signs.append("alive")
    bench.pipeline.on_piece = lambda name, keep_going: [keep_going() for _ in range(3)] and None
    bench.run(job)
    # Three pieces of each of encoding, stepping and decoding, and one before each.
    assert len(signs) == 12


@pytest.mark.parametrize("method", ["prepare", "step", "decode"])
def test_a_worker_that_must_leave_leaves_all_work_as_if_it_had_not_begun(method: str) -> None:
    """Other jobs find no work begun for them either; what was computed goes on elsewhere."""
    bench, unbroken = Bench(), Bench()
    job, next_job = claimed(num_inference_steps=3), claimed(num_inference_steps=3)
    steps = {"prepare": 0, "step": 0, "decode": 3}[method]
    leaving = False

    def alive() -> None:
        if leaving:
            raise Cancelled

    def on_piece(name: str, keep_going: KeepGoing) -> None:
        nonlocal leaving
        leaving = leaving or name == method
        keep_going()

    bench.engine._verdicts._alive = alive
    bench.pipeline.on_piece = on_piece
    bench.engine.admit(job)
    while not leaving:
        bench.engine.turn()
    bench.engine.admit(next_job)
    bench.engine.turn()
    assert bench.engine.held() == (job, next_job)
    assert bench.sink.outcomes == {}
    bench.engine.save(bench.engine.held(), 1.0)
    assert {j: c.step for j, c in bench.recorder.pointers.items()} == ({job.id: 3} if steps else {})
    bench.engine.evict()
    elsewhere = Bench(checkpoint_blobs=bench.checkpoints)
    elsewhere.run(
        replace(job, execution_id="again", checkpoint=bench.recorder.pointers.get(job.id))
    )
    unbroken.run(job)
    assert [*elsewhere.blobs.values()] == [*unbroken.blobs.values()]
    assert len(elsewhere.pipeline.batches) == 3 - steps


def in_one_step(bench: Bench, *jobs: ClaimedJob) -> None:
    bench.warm(len(jobs))
    for job in jobs:
        bench.engine.admit(job)


def test_a_shared_step_is_not_left_for_one_of_its_members() -> None:
    bench = Bench()
    cancelled, other = (claimed(num_inference_steps=5, seed=seed) for seed in (1, 2))
    in_one_step(bench, cancelled, other)
    log = post_within(bench, "step", (cancelled, Verdict.CANCEL))
    bench.engine.turn()
    assert log == ["begun", "went on"]
    assert bench.pipeline.batches == [[1, 2]]
    bench.engine.turn()
    assert bench.sink.status(cancelled) is Status.CANCELLED
    assert bench.pipeline.batches[1:] == [[2]]


def test_a_shared_step_is_left_when_nobody_wants_it_any_more() -> None:
    bench = Bench()
    first, second = (claimed(num_inference_steps=5, seed=seed) for seed in (1, 2))
    in_one_step(bench, first, second)
    log = post_within(bench, "step", (first, Verdict.CANCEL), (second, Verdict.LEASE_LOST))
    bench.engine.turn()
    assert log == ["begun"]
    assert bench.engine.is_idle
    assert bench.sink.status(first) is Status.CANCELLED
    assert bench.sink.status(second) is None


def test_a_cancel_in_a_batch_that_fails_is_a_cancel_and_no_failure() -> None:
    bench = Bench()
    cancelled, bad = claimed(seed=1), claimed("fail-step", seed=2)
    in_one_step(bench, cancelled, bad)
    post_within(bench, "step", (cancelled, Verdict.CANCEL))
    bench.run()
    assert bench.sink.status(cancelled) is Status.CANCELLED
    assert bench.sink.status(bad) is Status.FAILED


def test_a_cancelled_member_changes_nothing_in_the_results_of_the_others() -> None:
    jobs = [claimed(num_inference_steps=6, seed=seed) for seed in range(3)]
    undisturbed, bench = Bench(), Bench()
    in_one_step(undisturbed, *jobs)
    undisturbed.run()
    in_one_step(bench, *jobs)
    bench.engine.turn()
    bench.engine.turn()
    bench.engine.post(jobs[1], Verdict.CANCEL)
    bench.run()
    assert bench.sink.status(jobs[1]) is Status.CANCELLED
    for job in (jobs[0], jobs[2]):
        (output,) = bench.sink.outcomes[job.id].outputs
        assert bench.blobs[output.key] == undisturbed.blobs[output.key]


def test_a_cancel_that_came_before_the_job_is_obeyed_before_any_work() -> None:
    bench, job = Bench(), claimed()
    bench.sink.verdicts[job.id] = Verdict.CANCEL
    worked: list[str] = []
    bench.pipeline.on_piece = lambda name, keep_going: worked.append(name)
    bench.engine.admit(job)
    assert bench.engine.is_idle
    assert worked == []
    assert bench.sink.status(job) is Status.CANCELLED


def test_a_result_that_was_there_first_wins_over_a_later_cancel() -> None:
    bench, job = Bench(), claimed(num_inference_steps=1)
    bench.run(job)
    bench.engine.post(job, Verdict.CANCEL)
    bench.engine.turn()
    assert bench.sink.order == [job.id]
    assert bench.sink.status(job) is Status.SUCCEEDED


def test_a_verdict_that_came_during_the_report_is_not_lost() -> None:
    """The heartbeat speaks at any time; what it says is obeyed once."""
    bench, job = Bench(), claimed(num_inference_steps=3)
    report: Callable[..., list[Verdict]] = bench.sink.report

    def posting(updates: list) -> list[Verdict]:  # type: ignore[type-arg]
        if any(update.stage is Stage.DENOISING for update in updates):
            bench.engine.post(job, Verdict.CANCEL)
        return report(updates)

    bench.sink.report = posting  # type: ignore[method-assign, assignment]
    bench.run(job)
    assert bench.sink.order == [job.id]
    assert bench.sink.status(job) is Status.CANCELLED
    assert bench.pipeline.batches == []
