"""The engine on a fake pipeline: batches, isolation of failures, cancels, reports."""

from __future__ import annotations

import errno
import io

import pytest
from engine_harness import Bench, MemoryBlobs, claimed, overhead_bound
from PIL import Image

from jobs.types import ClaimedJob, ErrorCode, Priority, Stage, Status, Verdict
from workers.device import DeviceLost
from workers.scheduler import PATIENCE


def pixels(bench: Bench, job: ClaimedJob, index: int = 0) -> bytes:
    key = bench.sink.outcomes[job.id].outputs[index].key
    return Image.open(io.BytesIO(bench.blobs[key])).tobytes()


def test_a_job_passes_all_stages_in_order_and_succeeds() -> None:
    bench, job = Bench(), claimed(num_inference_steps=3)
    bench.run(job)
    assert bench.sink.stages(job) == [
        Stage.ENCODING,
        Stage.DENOISING,
        Stage.DECODING,
        Stage.STORING,
    ]
    steps = [u.step for u in bench.sink.of(job) if u.stage is Stage.DENOISING]
    assert steps == [0, 1, 2, 3]
    assert {u.total_steps for u in bench.sink.of(job)} == {3}
    outcome = bench.sink.outcomes[job.id]
    assert outcome.status is Status.SUCCEEDED
    (output,) = outcome.outputs
    assert output.seed == job.input["seed"]
    assert (output.width, output.height) == (64, 64)
    assert output.bytes == len(bench.blobs[output.key])


def test_a_job_of_several_images_stores_each_with_its_own_seed() -> None:
    bench, job = Bench(), claimed(num_images=3, seed=1000)
    singles = [claimed(seed=1000 + i) for i in range(3)]
    bench.run(job)
    bench.run(*singles)
    assert [o.seed for o in bench.sink.outcomes[job.id].outputs] == [1000, 1001, 1002]
    for index, single in enumerate(singles):
        assert pixels(bench, job, index) == pixels(bench, single)


def test_thirty_two_jobs_run_in_batches_and_each_looks_like_its_solo_run() -> None:
    bench, jobs = Bench(seconds=overhead_bound), [claimed() for _ in range(32)]
    bench.run(*jobs)
    assert max(len(batch) for batch in bench.pipeline.batches) > 1
    solo = Bench()
    for job in jobs:
        solo.run(job)
        assert pixels(bench, job) == pixels(solo, job)


def test_jobs_join_and_leave_a_running_batch() -> None:
    bench = Bench(seconds=overhead_bound)
    bench.warm(2)
    first, second = claimed(num_inference_steps=6), claimed(num_inference_steps=3)
    bench.engine.admit(first)
    bench.engine.turn()
    bench.engine.admit(second)
    bench.run()
    seeds = [first.input["seed"], second.input["seed"]]
    assert bench.pipeline.batches == [seeds[:1], seeds, seeds, seeds, seeds[:1], seeds[:1]]
    assert bench.sink.order[-2:] == [second.id, first.id]


def test_other_sizes_and_other_models_step_apart() -> None:
    bench = Bench(seconds=overhead_bound, models=("fake", "other"))
    small, large, other = claimed(), claimed(width=128), claimed(model="other")
    bench.run(small, large, other)
    assert all(bench.sink.status(job) is Status.SUCCEEDED for job in (small, large, other))
    assert all(len(batch) == 1 for batch in bench.pipeline.batches)


def test_an_interactive_job_passes_a_long_batch_job_at_the_next_step() -> None:
    bench = Bench()
    long = claimed(priority=Priority.BATCH, num_inference_steps=1000, width=128)
    urgent = claimed(priority=Priority.INTERACTIVE, num_inference_steps=4)
    bench.engine.admit(long)
    for _ in range(10):
        bench.engine.turn()
    assert bench.engine.open_ranks() > 0
    bench.engine.admit(urgent)
    for _ in range(4):
        bench.engine.turn()
    assert bench.sink.status(urgent) is Status.SUCCEEDED
    assert bench.sink.of(long)[-1].step == 10


def test_an_interactive_job_passes_however_many_large_jobs_of_other_sizes_fill_the_engine() -> None:
    bench = Bench()
    widths = iter(range(128, 1024, 64))
    while bench.engine.open_ranks() == len(Priority):
        bench.engine.admit(claimed(num_images=8, width=next(widths), num_inference_steps=2000))
        for _ in range(10):
            bench.engine.turn()
    assert len(bench.engine.held()) == 4
    assert bench.engine.open_ranks() == 1
    urgent = claimed(priority=Priority.INTERACTIVE, num_inference_steps=1)
    bench.engine.admit(urgent)
    bench.engine.turn()
    assert bench.sink.status(urgent) is Status.SUCCEEDED


def test_a_stream_of_interactive_jobs_does_not_starve_a_batch_job() -> None:
    bench = Bench()
    patient = claimed(priority=Priority.BATCH, num_inference_steps=3, width=128)
    bench.engine.admit(patient)
    turns = 0
    while bench.sink.status(patient) is None:
        bench.engine.admit(claimed(priority=Priority.INTERACTIVE, num_inference_steps=1))
        bench.engine.turn()
        turns += 1
        assert turns <= 3 * (PATIENCE + 4)


def test_a_deterministic_job_never_shares_a_step() -> None:
    bench = Bench(seconds=overhead_bound)
    bench.warm(4)
    alone, others = claimed(deterministic=True), [claimed() for _ in range(3)]
    bench.run(others[0], alone, *others[1:])
    for batch in bench.pipeline.batches:
        assert alone.input["seed"] not in batch or len(batch) == 1
    assert max(len(batch) for batch in bench.pipeline.batches) == 3


@pytest.mark.parametrize("trouble", ["fail-prepare", "fail-step", "fail-decode"])
def test_a_failing_job_fails_alone_and_its_batch_goes_on(trouble: str) -> None:
    bench = Bench(seconds=overhead_bound)
    bench.warm(4)
    bad, good = claimed(f"a {trouble} word"), [claimed() for _ in range(3)]
    bench.run(good[0], bad, *good[1:])
    outcome = bench.sink.outcomes[bad.id]
    assert outcome.status is Status.FAILED
    assert outcome.failure is not None
    assert outcome.failure.code is ErrorCode.INTERNAL
    assert "\n" not in outcome.failure.message
    assert [bench.sink.status(job) for job in good] == [Status.SUCCEEDED] * 3
    for job in good:
        assert bench.sink.outcomes[job.id].usage.steps == 4


def test_a_failure_names_stage_and_cause() -> None:
    bench, job = Bench(), claimed("fail-decode")
    bench.run(job)
    failure = bench.sink.outcomes[job.id].failure
    assert failure is not None
    assert failure.message == "decoding failed: ValueError: a broken decoder"


def test_latents_that_are_not_finite_fail_the_job_instead_of_showing_noise() -> None:
    bench, bad, good = Bench(seconds=overhead_bound), claimed("nan"), claimed()
    bench.run(bad, good)
    failure = bench.sink.outcomes[bad.id].failure
    assert failure is not None
    assert "not finite" in failure.message
    assert bench.sink.status(good) is Status.SUCCEEDED


def test_a_batch_out_of_memory_is_stepped_one_by_one_and_not_filled_so_far_again() -> None:
    bench = Bench(seconds=overhead_bound)
    bench.warm(4)
    jobs = [claimed("oom-above:2", num_inference_steps=6) for _ in range(4)]
    bench.run(*jobs)
    assert [bench.sink.status(job) for job in jobs] == [Status.SUCCEEDED] * 4
    too_large = [batch for batch in bench.pipeline.batches if len(batch) > 2]
    assert len(too_large) == 1
    assert max(map(len, bench.pipeline.batches[5:])) == 2


def test_a_job_too_large_alone_fails_with_out_of_memory_and_what_to_do() -> None:
    bench, bad, good = Bench(seconds=overhead_bound), claimed("oom-above:0"), claimed()
    bench.run(bad, good)
    failure = bench.sink.outcomes[bad.id].failure
    assert failure is not None
    assert failure.code is ErrorCode.OUT_OF_MEMORY
    assert failure.retryable
    assert "64x64" in failure.message
    assert bench.sink.status(good) is Status.SUCCEEDED


@pytest.mark.parametrize("trouble", ["oom-prepare", "oom-decode"])
def test_out_of_memory_outside_the_steps_has_the_same_code(trouble: str) -> None:
    bench, bad, good = Bench(), claimed(trouble), claimed()
    bench.run(bad, good)
    failure = bench.sink.outcomes[bad.id].failure
    assert failure is not None
    assert failure.code is ErrorCode.OUT_OF_MEMORY
    assert bench.sink.status(good) is Status.SUCCEEDED


def test_a_broken_device_fails_no_job_but_ends_the_engine() -> None:
    bench = Bench(seconds=overhead_bound)
    good, bad = claimed(width=128), claimed("lost", priority=Priority.INTERACTIVE)
    bench.engine.admit(good)
    bench.engine.admit(bad)
    with pytest.raises(DeviceLost, match="device-side assert"):
        bench.engine.turn()
    assert bench.sink.outcomes == {}
    assert {job.id for job, _ in bench.engine.evict()} == {bad.id, good.id}


def test_a_full_disk_fails_the_job_as_retryable_without_naming_a_path() -> None:
    class FullDisk(MemoryBlobs):
        def put(self, key: str, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", "/secret/folder")

    bench, job = Bench(blobs=FullDisk()), claimed()
    bench.run(job)
    failure = bench.sink.outcomes[job.id].failure
    assert failure is not None
    assert failure.retryable
    assert failure.message == "storing failed: OSError: No space left on device"


def test_a_record_without_a_field_fails_that_job_only() -> None:
    bench, bad, good = Bench(), claimed(), claimed()
    del bad.input["sampler"]
    bench.run(bad, good)
    assert bench.sink.status(bad) is Status.FAILED
    assert bench.sink.status(good) is Status.SUCCEEDED


def test_a_cancel_takes_the_member_out_within_one_step_and_the_others_go_on() -> None:
    bench = Bench(seconds=overhead_bound)
    bench.warm(2)
    cancelled, other = claimed(num_inference_steps=50), claimed(num_inference_steps=8)
    bench.engine.admit(cancelled)
    bench.engine.admit(other)
    for _ in range(3):
        bench.engine.turn()
    bench.sink.verdicts[cancelled.id] = Verdict.CANCEL
    bench.engine.turn()
    outcome = bench.sink.outcomes[cancelled.id]
    assert outcome.status is Status.CANCELLED
    assert outcome.usage.steps == 4
    assert bench.engine.held() == (other,)
    bench.run()
    assert bench.sink.status(other) is Status.SUCCEEDED
    assert all(len(batch) == 1 for batch in bench.pipeline.batches[4:])


@pytest.mark.parametrize("stage", [Stage.ENCODING, Stage.DECODING, Stage.STORING])
def test_a_cancel_is_obeyed_at_every_stage(stage: Stage) -> None:
    bench, job = Bench(), claimed()
    report = bench.sink.report

    def cancel_in_that_stage(updates: list) -> list[Verdict]:  # type: ignore[type-arg]
        report(updates)
        return [Verdict.CANCEL if u.stage is stage else Verdict.CONTINUE for u in updates]

    bench.sink.report = cancel_in_that_stage  # type: ignore[method-assign, assignment]
    bench.run(job)
    assert bench.sink.status(job) is Status.CANCELLED
    assert not bench.blobs


def test_a_lost_lease_drops_the_job_without_a_word() -> None:
    bench, lost, other = Bench(), claimed(), claimed()
    bench.engine.admit(lost)
    bench.engine.admit(other)
    bench.sink.verdicts[lost.id] = Verdict.LEASE_LOST
    bench.run()
    assert bench.sink.order == [other.id]


def test_verdicts_from_the_heartbeat_are_obeyed_at_the_next_boundary() -> None:
    bench, waiting = Bench(), claimed(width=128)
    bench.engine.admit(waiting)
    bench.engine.post(waiting, Verdict.CANCEL)
    bench.engine.post(claimed(), Verdict.CANCEL)
    bench.engine.turn()
    assert bench.sink.status(waiting) is Status.CANCELLED
    assert bench.pipeline.batches == []


def test_at_most_one_finished_job_leaves_per_turn() -> None:
    bench = Bench(seconds=overhead_bound)
    bench.warm(4)
    settled = len(bench.sink.order)
    for _ in range(4):
        bench.engine.admit(claimed(num_inference_steps=1))
    for turn in range(1, 5):
        bench.engine.turn()
        assert len(bench.sink.order) == settled + turn


def test_the_engine_offers_a_seat_only_while_the_batch_has_one() -> None:
    bench = Bench(seconds=lambda images: 0.1 * images, max_batch_images=2)
    bench.run(*(claimed(num_inference_steps=40) for _ in range(4)))
    assert bench.engine.open_ranks() == len(Priority)
    bench.engine.admit(claimed(priority=Priority.STANDARD))
    assert bench.engine.open_ranks() == 1


def test_eviction_hands_back_every_job_with_its_cost() -> None:
    bench, job = Bench(), claimed()
    bench.engine.admit(job)
    bench.engine.turn()
    ((evicted, usage),) = bench.engine.evict()
    assert evicted is job
    assert usage.steps == 1
    assert usage.gpu_seconds == pytest.approx(0.1)
    assert bench.engine.is_idle
    assert bench.engine.held() == ()
