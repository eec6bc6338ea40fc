"""Preempted jobs wait in host memory when the device has no room for them, and lose nothing."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

import pytest
import torch
from engine_harness import Bench, claimed
from fake_pipeline import FakeGeneration, FakePipeline

from jobs.types import ClaimedJob, ErrorCode, Priority, Status
from models.pipeline import Generation, KeepGoing, Request, to_the_end
from workers.device import Device
from workers.parking import Parking, default_budget

STATE = 48  # bytes of the latents of one fake picture, 3 x 2 x 2 in float32


def places(bench: Bench) -> dict[str, str]:
    members = bench.engine._members.values()
    return {
        m.job.id: m.generation.place for m in members if isinstance(m.generation, FakeGeneration)
    }


def pictures(bench: Bench, job: ClaimedJob) -> list[bytes]:
    return [bench.blobs[output.key] for output in bench.sink.outcomes[job.id].outputs]


def test_a_preempted_job_is_parked_and_its_picture_is_the_same() -> None:
    bench, plain = Bench(waiting_bytes=0), Bench()
    clip = claimed(priority=Priority.BATCH, num_inference_steps=30, width=128)
    urgent = claimed(priority=Priority.INTERACTIVE)
    bench.engine.admit(clip)
    for _ in range(5):
        bench.engine.turn()
    bench.engine.admit(urgent)
    bench.engine.turn()
    assert places(bench) == {clip.id: "host", urgent.id: "device"}
    assert bench.pipeline.batches_dropped == 1, "what it lent to the batch would stay behind"
    bench.run()
    assert bench.pipeline.batches_dropped == 3, "and what the two that have ended lent"
    plain.run(clip)
    plain.run(urgent)
    for job in (clip, urgent):
        assert pictures(bench, job) == pictures(plain, job)


def test_within_the_budget_everything_stays_on_the_device() -> None:
    bench = Bench(waiting_bytes=3 * STATE)
    jobs = [claimed(width=64 + 32 * i, num_inference_steps=20) for i in range(4)]
    for job in jobs:
        bench.engine.admit(job)
    bench.engine.turn()
    assert set(places(bench).values()) == {"device"}


def test_the_least_urgent_and_then_the_newest_are_parked_first() -> None:
    bench = Bench(waiting_bytes=2 * STATE)
    leader = claimed(priority=Priority.INTERACTIVE)
    older = claimed(width=96, priority=Priority.STANDARD)
    patient = claimed(width=128, priority=Priority.BATCH)
    newer = claimed(width=160, priority=Priority.STANDARD)
    newest = claimed(width=192, priority=Priority.STANDARD)
    for job in (patient, older, newer, newest, leader):
        bench.engine.admit(job)
    bench.engine.turn()
    parked = {job for job, place in places(bench).items() if place == "host"}
    assert parked == {patient.id, newest.id}


@pytest.mark.parametrize("budget", [0, STATE, 3 * STATE])
def test_whatever_is_parked_every_job_ends_as_it_would_alone(budget: int) -> None:
    bench, plain = Bench(waiting_bytes=budget), Bench()
    jobs = [
        claimed(priority=priority, width=32 * (1 + i), num_images=1 + i % 3, num_inference_steps=12)
        for i, priority in enumerate([*Priority] * 3)
    ]
    bench.run(*jobs)
    for job in jobs:
        plain.run(job)
        assert pictures(bench, job) == pictures(plain, job)
    assert bench.engine._parking._device_bytes == 0
    assert not bench.engine._parking.parked


class SmallDevice(FakePipeline):
    """Has room for the states of `room` bytes and no more, wherever something is computed."""

    room = 2 * STATE

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.generations: WeakSet[FakeGeneration] = WeakSet()

    def prepare(self, request: Request, keep_going: KeepGoing = to_the_end) -> FakeGeneration:
        self.check(STATE * request.num_images)
        generation = super().prepare(request, keep_going)
        self.generations.add(generation)
        return generation

    def step(self, batch: Sequence[Generation], keep_going: KeepGoing = to_the_end) -> None:
        self.check(0)
        super().step(batch, keep_going)

    def check(self, more: int) -> None:
        here = sum(g.latents.nbytes for g in self.generations if g.place == "device")
        if here + more > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_running_out_of_memory_moves_those_that_wait_out_of_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine_harness.FakePipeline", SmallDevice)
    bench = Bench(waiting_bytes=100 * STATE)
    jobs = [claimed(width=32 * (1 + i), num_inference_steps=6) for i in range(4)]
    bench.run(*jobs)
    assert [bench.sink.status(job) for job in jobs] == [Status.SUCCEEDED] * 4


def test_what_does_not_fit_alone_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_harness.FakePipeline", SmallDevice)
    bench = Bench(waiting_bytes=100 * STATE)
    good, huge = claimed(num_inference_steps=6), claimed(num_images=3, width=96)
    bench.run(good, huge)
    failure = bench.sink.outcomes[huge.id].failure
    assert failure is not None
    assert failure.code is ErrorCode.OUT_OF_MEMORY
    assert bench.sink.status(good) is Status.SUCCEEDED


def test_a_host_without_room_leaves_the_job_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: FakeGeneration, device: object) -> None:
        raise MemoryError("no room")

    bench = Bench(waiting_bytes=0)
    waiting, urgent = claimed(width=96), claimed(priority=Priority.INTERACTIVE)
    monkeypatch.setattr(FakeGeneration, "to", full)
    bench.run(waiting, urgent)
    assert [bench.sink.status(job) for job in (waiting, urgent)] == [Status.SUCCEEDED] * 2


def test_a_tenth_of_a_gpu_is_for_those_that_wait_and_on_a_cpu_nothing_is_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert default_budget(Device("cpu", "float32")) == float("inf")
    monkeypatch.setattr(Device, "memory_bytes", lambda self: {"total": 80_000})
    assert default_budget(Device("cuda:0", "bfloat16")) == 8_000
    parking = Parking({}, Device("cpu", "float32"), float("inf"))
    parking.clear(())
    parking.settle(())
