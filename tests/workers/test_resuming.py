"""Going on from a checkpoint: to the same bytes, or told why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from checkpoint_harness import LONG, Later, interrupted, outputs, resume, turn
from engine_harness import MAX_ATTEMPTS, Bench, MemoryBlobs, claimed
from fake_pipeline import FakeGeneration

from jobs.types import Checkpoint, Stage, Status
from workers.checkpoint_file import DAMAGED, FOREIGN, MISSING, UNREADABLE


@pytest.mark.parametrize("num_images", [1, 3])
def test_a_resumed_job_ends_with_the_same_bytes_and_fewer_steps(num_images: int) -> None:
    job = claimed(num_inference_steps=LONG, num_images=num_images)
    unbroken = Bench()
    unbroken.run(job)
    first, again = interrupted(job)
    second = resume(again, first.checkpoints)
    assert outputs(second) == outputs(unbroken)
    assert len(second.pipeline.batches) == LONG - 100
    usage = second.sink.outcomes[job.id].usage
    assert (usage.steps, usage.resumed_steps) == (LONG - 100, 100)
    assert second.sink.restarts == []


def test_reports_show_the_resumed_step_from_the_beginning() -> None:
    job = claimed(num_inference_steps=LONG)
    first, again = interrupted(job)
    second = resume(again, first.checkpoints)
    reports = second.sink.of(again)
    assert [(u.stage, u.step) for u in reports[:3]] == [
        (Stage.ENCODING, 100),
        (Stage.DENOISING, 100),
        (Stage.DENOISING, 101),
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
    assert len(third.pipeline.batches) == LONG - 100


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
    assert bench.sink.outcomes[job.id].usage.resumed_steps == 100


def test_a_checkpoint_of_another_size_or_input_is_refused() -> None:
    job = claimed(num_inference_steps=LONG)
    first, again = interrupted(job)
    other = replace(again, input={**again.input, "seed": 1})
    assert resume(other, first.checkpoints).sink.restarts == [(job.id, FOREIGN)]
