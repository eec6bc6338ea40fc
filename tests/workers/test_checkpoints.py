"""Checkpoints in the engine: when they are taken, that steps do not wait, what is left of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from checkpoint_harness import LONG, FullDisk, Later, interrupted, outputs, resume, turn
from engine_harness import Bench, MemoryBlobs, claimed

from jobs.errors import StoreUnavailable
from jobs.types import Status, Verdict


class OnDisk(MemoryBlobs):
    """A file stored again takes the place of the first."""

    def put(self, key: str, data: bytes) -> None:
        self[key] = data


def test_a_long_job_gets_a_checkpoint_at_every_interval_and_keeps_the_newest() -> None:
    bench, job = Bench(checkpoint_seconds=10.0), claimed(num_inference_steps=LONG)
    bench.engine.admit(job)
    # Ten steps a second.
    turn(bench, 99)
    assert bench.recorder.pointers == {}
    turn(bench, 1)
    assert bench.recorder.pointers[job.id].step == 100
    turn(bench, 100)
    assert bench.recorder.pointers[job.id].step == 200
    assert list(bench.checkpoints) == [bench.recorder.pointers[job.id].key]
    assert [usage.steps for usage in bench.recorder.usages] == [100, 200]
    # The last hundred steps take less than the interval and are not worth one.
    bench.run()
    assert len(bench.recorder.usages) == 2


def test_a_step_longer_than_the_interval_gets_a_checkpoint_in_every_attempt() -> None:
    bench, job = Bench(seconds=lambda images: 159.0, checkpoint_seconds=10.0), claimed()
    bench, again = interrupted(job, turns=1, bench=bench)
    assert again.checkpoint is not None
    assert again.checkpoint.step == 1
    other = Bench(
        seconds=lambda images: 159.0,
        checkpoint_seconds=10.0,
        checkpoint_blobs=bench.checkpoints,
    )
    _, once_more = interrupted(again, turns=1, bench=other)
    assert once_more.checkpoint is not None
    assert once_more.checkpoint.step == 2


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
    assert bench.recorder.pointers[job.id].step == 10
    turn(bench, 1)
    assert len(later.waiting) == 1


def test_a_full_disk_costs_the_checkpoint_and_not_the_job() -> None:
    disk = FullDisk()
    bench = Bench(checkpoint_seconds=10.0, checkpoint_blobs=disk)
    job = claimed(num_inference_steps=LONG)
    bench.engine.admit(job)
    turn(bench, 150)
    assert bench.recorder.pointers == {}
    disk.is_full = False
    turn(bench, 100)
    assert bench.recorder.pointers[job.id].step == 200
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
    assert bench.recorder.pointers[job.id].step == 200


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


def test_what_could_not_be_recorded_is_stored_and_recorded_again() -> None:
    """As by a worker that drains and has Redis back only now; the file is the same both times."""
    blobs = OnDisk()
    bench = Bench(checkpoint_seconds=1e9, checkpoint_blobs=blobs)
    job = claimed(num_inference_steps=LONG)
    bench.engine.admit(job)
    turn(bench, 7)
    record = bench.recorder.record_checkpoint

    def unanswered(*_: object) -> bool:
        raise StoreUnavailable("Redis is away")

    bench.recorder.record_checkpoint = unanswered  # type: ignore[method-assign]
    bench.engine.save([job], timeout=1.0)
    bench.recorder.record_checkpoint = record  # type: ignore[method-assign]
    bench.engine.save([job], timeout=1.0)
    pointer = bench.recorder.pointers[job.id]
    assert pointer.step == 7
    assert [*blobs] == [pointer.key]
    turn(bench, 3)
    bench.engine.save([job], timeout=1.0)
    assert [*blobs] == [bench.recorder.pointers[job.id].key] != [pointer.key]


def test_jobs_that_leave_together_are_handed_back_so_that_the_oldest_comes_to_the_front() -> None:
    bench = Bench()
    jobs = [claimed() for _ in range(3)]
    for job in jobs:
        bench.engine.admit(job)
    assert [job for job, _ in bench.engine.evict()] == [*reversed(jobs)]
