"""Checkpoints in the engine: when they are taken, that steps do not wait, how a job goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from engine_harness import MAX_ATTEMPTS, Bench, MemoryBlobs, claimed
from fake_pipeline import FakeGeneration

from jobs.types import Checkpoint, ClaimedJob, Stage, Status, Verdict
from workers.checkpoint_file import DAMAGED, FOREIGN, MISSING, UNREADABLE

T = TypeVar("T")

LONG = 400


class Later:
    """A background whose work waits until it is told to be done."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], object], Future[object]]] = []

    def submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self.waiting.append((work, future))  # type: ignore[arg-type]
        return future

    def work_off(self) -> None:
        while self.waiting:
            work, future = self.waiting.pop(0)
            future.set_result(work())


class FullDisk(MemoryBlobs):
    """Takes nothing while `is_full`."""

    is_full = True

    def put(self, key: str, data: bytes) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device", key)
        super().put(key, data)


def turn(bench: Bench, turns: int) -> None:
    for _ in range(turns):
        bench.engine.turn()


def interrupted(
    job: ClaimedJob, turns: int = 150, bench: Bench | None = None
) -> tuple[Bench, ClaimedJob]:
    """A bench that has lost `job` after so many steps, and the job as it is claimed again."""
    bench = bench or Bench(checkpoint_seconds=10.0)
    bench.engine.admit(job)
    turn(bench, turns)
    pointer = bench.recorder.pointers[job.id]
    return bench, replace(job, execution_id=f"{job.execution_id}b", checkpoint=pointer)


def resume(job: ClaimedJob, checkpoints: MemoryBlobs) -> Bench:
    bench = Bench(checkpoint_seconds=10.0, checkpoint_blobs=checkpoints)
    bench.run(job)
    return bench


def outputs(bench: Bench) -> list[bytes]:
    return [bench.blobs[key] for key in sorted(bench.blobs)]


def test_a_long_job_gets_a_checkpoint_at_every_interval_and_keeps_the_newest() -> None:
    bench, job = Bench(checkpoint_seconds=10.0), claimed(num_inference_steps=LONG)
    bench.engine.admit(job)
    # Ten steps a second; the clock of a job's checkpoints starts with its first step.
    turn(bench, 100)
    assert bench.recorder.pointers == {}
    turn(bench, 1)
    assert bench.recorder.pointers[job.id].step == 101
    turn(bench, 100)
    assert bench.recorder.pointers[job.id].step == 201
    assert list(bench.checkpoints) == [bench.recorder.pointers[job.id].key]
    assert [usage.steps for usage in bench.recorder.usages] == [101, 201]
    # The last hundred steps take less than the interval and are not worth one.
    bench.run()
    assert len(bench.recorder.usages) == 2


def test_a_job_that_ends_soon_gets_none() -> None:
    bench = Bench(checkpoint_seconds=10.0)
    bench.run(claimed(num_inference_steps=100))
    assert bench.recorder.pointers == {}


def test_steps_go_on_while_a_checkpoint_is_being_written() -> None:
    later = Later()
    bench = Bench(checkpoint_seconds=1.0, checkpoint_background=later)
    job = claimed(num_inference_steps=LONG)
    bench.engine.admit(job)
    turn(bench, 200)
    assert len(bench.pipeline.batches) == 200
    assert bench.recorder.pointers == {}
    # One at a time: a slow disk must not pile up copies of the state.
    assert len(later.waiting) == 1
    later.work_off()
    # It is the state of its own step, whatever has happened since.
    assert bench.recorder.pointers[job.id].step == 11
    turn(bench, 1)
    assert len(later.waiting) == 1


@pytest.mark.parametrize("num_images", [1, 3])
def test_a_resumed_job_ends_with_the_same_bytes_and_fewer_steps(num_images: int) -> None:
    job = claimed(num_inference_steps=LONG, num_images=num_images)
    unbroken = Bench()
    unbroken.run(job)
    first, again = interrupted(job)
    second = resume(again, first.checkpoints)
    assert outputs(second) == outputs(unbroken)
    assert len(second.pipeline.batches) == LONG - 101
    usage = second.sink.outcomes[job.id].usage
    assert (usage.steps, usage.resumed_steps) == (LONG - 101, 101)
    assert second.sink.restarts == []


def test_reports_show_the_resumed_step_from_the_beginning() -> None:
    job = claimed(num_inference_steps=LONG)
    first, again = interrupted(job)
    second = resume(again, first.checkpoints)
    reports = second.sink.of(again)
    assert [(u.stage, u.step) for u in reports[:3]] == [
        (Stage.ENCODING, 101),
        (Stage.DENOISING, 101),
        (Stage.DENOISING, 102),
    ]


def damage(checkpoints: MemoryBlobs, pointer: Checkpoint) -> Checkpoint:
    checkpoints[pointer.key] = checkpoints[pointer.key][:-1] + b"\0"
    return pointer


def lose(checkpoints: MemoryBlobs, pointer: Checkpoint) -> Checkpoint:
    checkpoints.clear()
    return pointer


def misplace(checkpoints: MemoryBlobs, pointer: Checkpoint) -> Checkpoint:
    return replace(pointer, key="jobs/another/checkpoints/e-1.safetensors")


def mistake(checkpoints: MemoryBlobs, pointer: Checkpoint) -> Checkpoint:
    return replace(pointer, step=pointer.step - 1)


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [(damage, DAMAGED), (lose, MISSING), (misplace, FOREIGN), (mistake, FOREIGN)],
)
def test_a_useless_checkpoint_means_a_restart_that_is_told_and_never_a_failure(
    spoil: Callable[[MemoryBlobs, Checkpoint], Checkpoint], cause: str
) -> None:
    job = claimed(num_inference_steps=LONG)
    unbroken = Bench()
    unbroken.run(job)
    first, again = interrupted(job)
    assert again.checkpoint is not None
    again = replace(again, checkpoint=spoil(first.checkpoints, again.checkpoint))
    second = resume(again, first.checkpoints)
    assert second.sink.restarts == [(job.id, cause)]
    assert second.sink.status(job) is Status.SUCCEEDED
    assert outputs(second) == outputs(unbroken)
    usage = second.sink.outcomes[job.id].usage
    assert (usage.steps, usage.resumed_steps) == (LONG, 0)


class StaleDisk(MemoryBlobs):
    """Gives nothing while `is_stale`."""

    is_stale = True

    def read(self, key: str) -> bytes:
        if self.is_stale:
            raise OSError(116, "Stale file handle", key)
        return super().read(key)


def test_a_checkpoint_that_cannot_be_read_now_is_left_to_the_next_attempt() -> None:
    job = claimed(num_inference_steps=LONG)
    disk = StaleDisk()
    _, again = interrupted(job, bench=Bench(checkpoint_seconds=10.0, checkpoint_blobs=disk))
    second = resume(again, disk)
    assert second.sink.handed_back == [(job.id, UNREADABLE)]
    assert second.sink.restarts == second.pipeline.batches == []
    assert second.sink.outcomes == {}
    disk.is_stale = False
    third = resume(replace(again, attempt=2), disk)
    assert len(third.pipeline.batches) == LONG - 101


def test_the_last_attempt_starts_anew_if_the_checkpoint_can_still_not_be_read() -> None:
    job = claimed(num_inference_steps=LONG)
    disk = StaleDisk()
    _, again = interrupted(job, bench=Bench(checkpoint_seconds=10.0, checkpoint_blobs=disk))
    last = resume(replace(again, attempt=MAX_ATTEMPTS), disk)
    assert last.sink.restarts == [(job.id, UNREADABLE)]
    assert last.sink.handed_back == []
    assert last.sink.status(job) is Status.SUCCEEDED


@pytest.mark.parametrize("times", [1, 2])
def test_a_checkpoint_for_which_memory_is_short_gets_it_or_another_attempt(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    job, neighbour = claimed(num_inference_steps=LONG), claimed(num_inference_steps=LONG)
    first, again = interrupted(job)
    bench = Bench(checkpoint_blobs=first.checkpoints, waiting_bytes=1e9)
    bench.engine.admit(neighbour)
    waiting = bench.engine._members[neighbour.execution_id].generation
    assert isinstance(waiting, FakeGeneration)
    load, places = FakeGeneration.load_state_dict, []

    def short(generation: FakeGeneration, state: Mapping[str, torch.Tensor]) -> None:
        places.append(waiting.place)
        if len(places) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory")
        load(generation, state)

    monkeypatch.setattr(FakeGeneration, "load_state_dict", short)
    bench.engine.admit(again)
    turn(bench, 1)
    assert places == ["device", "host"]
    assert bench.sink.handed_back == ([] if times == 1 else [(job.id, UNREADABLE)])
    assert bench.engine.held() == ((neighbour, again) if times == 1 else (neighbour,))
    assert bench.sink.restarts == []


def test_the_steps_of_others_go_on_while_a_checkpoint_is_read() -> None:
    job, other = claimed(num_inference_steps=LONG), claimed(num_inference_steps=5)
    first, again = interrupted(job)
    later = Later()
    bench = Bench(checkpoint_blobs=first.checkpoints, readers=[later])
    bench.engine.admit(other)
    bench.engine.admit(again)
    turn(bench, 5)
    assert bench.sink.status(other) is Status.SUCCEEDED
    assert bench.pipeline.batches == 5 * [[other.input["seed"]]]
    later.work_off()
    bench.run()
    assert bench.sink.outcomes[job.id].usage.resumed_steps == 101


def test_a_checkpoint_of_another_size_or_input_is_refused() -> None:
    job = claimed(num_inference_steps=LONG)
    first, again = interrupted(job)
    other = replace(again, input={**again.input, "seed": 1})
    assert resume(other, first.checkpoints).sink.restarts == [(job.id, FOREIGN)]


def test_a_full_disk_costs_the_checkpoint_and_not_the_job() -> None:
    disk = FullDisk()
    bench = Bench(checkpoint_seconds=10.0, checkpoint_blobs=disk)
    job = claimed(num_inference_steps=LONG)
    bench.engine.admit(job)
    turn(bench, 150)
    assert bench.recorder.pointers == {}
    disk.is_full = False
    turn(bench, 100)
    assert bench.recorder.pointers[job.id].step == 201
    bench.run()
    assert bench.sink.status(job) is Status.SUCCEEDED


@pytest.mark.parametrize("prompt", ["a word", "fail-decode", "nan"])
def test_no_checkpoint_is_left_of_a_job_that_ended_here(prompt: str) -> None:
    bench, job = Bench(checkpoint_seconds=10.0), claimed(prompt, num_inference_steps=LONG)
    bench.run(job)
    assert bench.recorder.pointers.keys() == {job.id}
    assert bench.sink.outcomes.keys() == {job.id}
    assert bench.checkpoints == {}


def test_a_cancel_removes_the_checkpoint_even_one_still_being_written() -> None:
    later = Later()
    bench = Bench(checkpoint_seconds=10.0, checkpoint_background=later)
    job = claimed(num_inference_steps=LONG)
    bench.engine.admit(job)
    turn(bench, 101)
    bench.sink.verdicts[job.id] = Verdict.CANCEL
    turn(bench, 1)
    assert bench.sink.status(job) is Status.CANCELLED
    later.work_off()
    assert bench.checkpoints == {}


def test_a_fenced_off_worker_removes_nothing_that_others_may_need() -> None:
    job = claimed(num_inference_steps=LONG)
    bench, again = interrupted(job)
    bench.recorder.is_fenced_off = True
    turn(bench, 100)
    bench.sink.verdicts[job.id] = Verdict.LEASE_LOST
    turn(bench, 1)
    assert bench.engine.is_idle
    assert resume(again, bench.checkpoints).sink.restarts == []


def test_a_resumed_job_replaces_the_checkpoint_it_came_from() -> None:
    job = claimed(num_inference_steps=LONG)
    first, again = interrupted(job)
    bench = Bench(checkpoint_seconds=10.0, checkpoint_blobs=first.checkpoints)
    bench.engine.admit(again)
    turn(bench, 150)
    assert [*bench.checkpoints] == [bench.recorder.pointers[job.id].key]
    assert bench.recorder.pointers[job.id].step == 202


def test_saving_takes_what_has_moved_and_no_more() -> None:
    bench, job = Bench(), claimed(num_inference_steps=LONG)
    fresh = claimed(num_inference_steps=LONG, width=128)
    bench.engine.admit(job)
    turn(bench, 5)
    bench.engine.admit(fresh)
    bench.engine.save([job, fresh], 1.0)
    assert {k: v.step for k, v in bench.recorder.pointers.items()} == {job.id: 5}
    bench.engine.save(bench.engine.held(), 1.0)
    assert len(bench.recorder.usages) == 1
    again = replace(job, execution_id="again", checkpoint=bench.recorder.pointers[job.id])
    other = Bench(checkpoint_blobs=bench.checkpoints)
    other.engine.admit(again)
    other.engine.save([again], 1.0)
    assert other.recorder.usages == []


def test_saving_does_not_wait_longer_than_it_may() -> None:
    bench = Bench(checkpoint_background=Later())
    job = claimed(num_inference_steps=LONG)
    bench.engine.admit(job)
    turn(bench, 3)
    bench.engine.save([job], 0.01)
    assert bench.recorder.pointers == {}
    assert [dropped for dropped, _ in bench.engine.evict([job])] == [job]


def test_a_job_saved_after_its_last_step_is_only_decoded_elsewhere() -> None:
    job = claimed(num_inference_steps=3, num_images=2)
    unbroken = Bench()
    unbroken.run(job)
    bench = Bench(seconds=lambda images: 0.1)
    bench.engine.admit(job)
    bench.engine._decode = lambda member: None  # type: ignore[method-assign]
    turn(bench, 3)
    bench.engine.save([job], 1.0)
    again = replace(job, execution_id="again", checkpoint=bench.recorder.pointers[job.id])
    other = Bench(checkpoint_blobs=bench.checkpoints)
    other.run(again)
    assert other.pipeline.batches == []
    assert outputs(other) == outputs(unbroken)


def test_a_draining_engine_keeps_the_last_step_of_what_it_may_not_come_to_store() -> None:
    storing = Later()
    bench, job = Bench(background=storing), claimed(num_inference_steps=3)
    bench.engine.admit(job)
    bench.engine.drain()
    turn(bench, 3)
    # Decoded and its latents gone, but not stored.
    assert len(storing.waiting) == 1
    assert bench.recorder.pointers[job.id].step == 3
    bench.engine.save([job], 1.0)
    assert [dropped for dropped, _ in bench.engine.evict()] == [job]
    again = replace(job, execution_id="again", checkpoint=bench.recorder.pointers[job.id])
    other = Bench(checkpoint_blobs=bench.checkpoints)
    other.run(again)
    assert other.pipeline.batches == []
    assert other.sink.status(job) is Status.SUCCEEDED
    assert other.checkpoints == {}


def test_only_jobs_that_cannot_end_in_time_even_alone_are_hopeless() -> None:
    bench = Bench()
    short, long = claimed(num_inference_steps=30), claimed(num_inference_steps=90, width=128)
    bench.engine.admit(short)
    bench.engine.admit(long)
    assert bench.engine.hopeless(0.5) == []
    turn(bench, 20)
    # About two seconds of steps are left to the first, eight to the second.
    assert bench.engine.hopeless(60.0) == []
    assert bench.engine.hopeless(5.0) == [long]
    assert [job for job, _ in bench.engine.evict([long])] == [long]
    bench.run()
    assert bench.sink.outcomes.keys() == {short.id}


def test_a_batch_goes_on_when_one_of_its_checkpoints_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(checkpoint_seconds=10.0)
    bench.warm(2)
    jobs = [claimed(num_inference_steps=LONG) for _ in range(2)]
    for job in jobs:
        bench.engine.admit(job)
    broken = bench.engine._members[jobs[0].execution_id].generation

    def out_of_memory() -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(broken, "state_dict", out_of_memory)
    turn(bench, 210)
    assert bench.recorder.pointers.keys() == {jobs[1].id}
    bench.run()
    assert {bench.sink.status(job) for job in jobs} == {Status.SUCCEEDED}
