"""What the engine tells of its jobs: steps, times left, device seconds, previews."""

from __future__ import annotations

import io
import itertools

import pytest
from engine_harness import Bench, claimed, overhead_bound
from PIL import Image

from jobs.types import Priority, Stage, Status


def test_every_step_is_reported_but_events_come_at_most_twenty_a_second() -> None:
    bench, job = Bench(seconds=lambda images: 0.01), claimed(num_inference_steps=100)
    bench.run(job)
    reports = [u for u in bench.sink.of(job) if u.stage is Stage.DENOISING]
    assert [u.step for u in reports] == list(range(101))
    events = [u.step for u in reports if u.event]
    assert events[0] == 0
    assert events[-1] == 100
    # One second of steps: at most twenty events apart from the first and the last.
    assert 17 <= len(events) <= 22
    assert all(u.event for u in bench.sink.of(job) if u.stage is not Stage.DENOISING)


def test_a_batch_reports_in_one_call() -> None:
    bench = Bench(seconds=overhead_bound)
    bench.warm(4)
    jobs = [claimed() for _ in range(4)]
    for job in jobs:
        bench.engine.admit(job)
    bench.sink.calls.clear()
    bench.engine.turn()
    assert [len(call) for call in bench.sink.calls] == [4]


def test_the_eta_is_absent_until_measured_and_then_counts_down() -> None:
    bench, job = Bench(seconds=lambda images: 0.5), claimed(num_inference_steps=10)
    bench.run(job)
    encoding, begin, *denoising = [
        u for u in bench.sink.of(job) if u.stage in (Stage.ENCODING, Stage.DENOISING)
    ]
    assert encoding.eta_seconds is begin.eta_seconds is None
    assert [u.eta_seconds for u in denoising] == pytest.approx(
        [0.5 * (10 - step) for step in range(1, 11)]
    )


def test_the_eta_counts_the_turns_that_others_take() -> None:
    bench = Bench()
    long = claimed(priority=Priority.BATCH, num_inference_steps=200, width=128)
    bench.engine.admit(long)
    bench.engine.turn()
    for _ in range(60):
        bench.engine.admit(claimed(priority=Priority.INTERACTIVE, num_inference_steps=1))
        bench.engine.turn()
    last = bench.sink.of(long)[-1]
    assert last.eta_seconds is not None
    assert last.eta_seconds > 4 * 0.1 * (200 - last.step)


def test_device_seconds_are_shared_by_images() -> None:
    bench = Bench(seconds=lambda images: 1.0 + 0.01 * images)
    bench.warm(4)
    single, triple = claimed(num_inference_steps=2), claimed(num_inference_steps=2, num_images=3)
    bench.run(single, triple)
    assert len(bench.pipeline.batches) == 2
    usages = [bench.sink.outcomes[job.id].usage for job in (single, triple)]
    assert [u.gpu_seconds for u in usages] == pytest.approx([2 * 1.04 / 4, 2 * 1.04 * 3 / 4])
    assert [u.steps for u in usages] == [2, 2]
    # What estimates learn from: a step as it passed, and each job's share of it.
    costs = [bench.sink.outcomes[job.id].costs for job in (single, triple)]
    assert [c.step for c in costs if c] == pytest.approx([1.04, 1.04])
    assert [c.device_step for c in costs if c] == pytest.approx([1.04 / 4, 1.04 * 3 / 4])


def test_previews_are_small_jpegs_and_not_more_frequent_than_asked() -> None:
    bench = Bench(seconds=lambda images: 0.1, preview_seconds=0.5)
    job = claimed(num_inference_steps=31, num_images=3, width=512, height=512)
    bench.run(job)
    with_preview = [u for u in bench.sink.of(job) if u.preview is not None]
    gaps = [b.step - a.step for a, b in itertools.pairwise(with_preview)]
    assert len(with_preview) >= 4
    assert min(gaps) >= 5
    for update in with_preview:
        assert update.preview is not None
        assert len(update.preview) <= 16_384
        assert Image.open(io.BytesIO(update.preview)).format == "JPEG"
        assert update.event


def test_a_failing_preview_harms_nobody() -> None:
    bench, job = Bench(preview_seconds=0.1), claimed("fail-preview")
    bench.run(job)
    assert bench.sink.status(job) is Status.SUCCEEDED
