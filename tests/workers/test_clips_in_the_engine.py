"""Clips through the engine, and results stored in the background while others step on."""

from __future__ import annotations

import gc
import io
import weakref
from dataclasses import replace
from typing import Any

import av
import numpy as np
import pytest
from engine_harness import (
    Bench,
    HeldBlobs,
    claimed,
    claimed_clip,
    clip_bench,
    turn_until,
)
from fake_pipeline import FakeClipPipeline, FakeGeneration, FakePipeline
from PIL import Image

from jobs.blobs import variant_key
from jobs.types import Stage, Status, Verdict
from workers import inputs
from workers.background import BackgroundThread
from workers.storing import StoringStuck
from workers.thumbnails import STRIP_GAP


@pytest.mark.parametrize(
    ("output_format", "content_type", "codec"),
    [("mp4", "video/mp4", "h264"), ("webm", "video/webm", "vp9"), ("webp", "image/webp", "webp")],
)
def test_a_clip_passes_all_stages_and_its_output_tells_what_it_is(
    output_format: str, content_type: str, codec: str
) -> None:
    bench, job = clip_bench(), claimed_clip(num_frames=13, fps=8.0, output_format=output_format)
    bench.run(job)
    assert bench.sink.stages(job) == [
        Stage.ENCODING,
        Stage.DENOISING,
        Stage.DECODING,
        Stage.STORING,
    ]
    (output,) = bench.sink.outcomes[job.id].outputs
    assert output.key.endswith(f"/0.{output_format}")
    assert (output.content_type, output.codec) == (content_type, codec)
    assert (output.width, output.height, output.num_frames) == (64, 64, 13)
    assert (output.fps, output.duration_seconds) == (8.0, 1.625)
    assert output.seed == job.input["seed"]
    assert output.bytes == len(bench.blobs[output.key])
    assert output.variants == ("thumbnail", "frames")
    strip = Image.open(io.BytesIO(bench.blobs[variant_key(output.key, "frames")]))
    assert strip.size == (9 * 64 + 8 * STRIP_GAP, 64)


def test_the_stored_clip_shows_the_frames_of_the_pipeline() -> None:
    bench, job = clip_bench(), claimed_clip()
    bench.run(job)
    (output,) = bench.sink.outcomes[job.id].outputs
    with av.open(io.BytesIO(bench.blobs[output.key])) as container:
        frames = [f.to_ndarray(format="rgb24").astype(int) for f in container.decode(video=0)]
    assert len(frames) == 9
    # The fake's column of one pixel moves over a picture that stays.
    for index, frame in enumerate(frames):
        assert np.abs(frame[:, index * 64 // 9].mean() - 128) < 40
    assert np.abs(frames[0] - frames[8]).max() > 30


def test_a_picture_says_nothing_of_frames_and_has_a_thumbnail() -> None:
    bench, job = Bench(), claimed(num_images=2)
    bench.run(job)
    outputs = bench.sink.outcomes[job.id].outputs
    for output in outputs:
        assert (output.codec, output.num_frames, output.fps) == (None, None, None)
        assert output.duration_seconds is None
        assert output.variants == ("thumbnail",)
        thumbnail = Image.open(io.BytesIO(bench.blobs[variant_key(output.key, "thumbnail")]))
        assert thumbnail.size == (64, 64)
    assert len(bench.blobs) == 4


def test_equal_jobs_store_equal_bytes() -> None:
    first, second = claimed_clip(seed=5), claimed_clip(seed=5)
    bench = clip_bench()
    bench.run(first)
    bench.run(second)
    files = [bench.blobs[bench.sink.outcomes[job.id].outputs[0].key] for job in (first, second)]
    assert files[0] == files[1]


def test_a_clips_preview_is_a_strip_of_its_frames() -> None:
    bench, job = clip_bench(preview_seconds=0.1), claimed_clip(num_inference_steps=8)
    bench.run(job)
    previews = [u.preview for u in bench.sink.of(job) if u.preview is not None]
    assert len(previews) >= 4
    for preview in previews:
        assert len(preview) <= 16_384
        picture = Image.open(io.BytesIO(preview))
        assert picture.width == pytest.approx(3 * picture.height, abs=2)


def test_a_failing_decoder_fails_the_clip_alone() -> None:
    bench, bad, good = clip_bench(), claimed_clip("fail-decode"), claimed_clip()
    bench.run(bad, good)
    assert bench.sink.status(bad) is Status.FAILED
    assert bench.sink.status(good) is Status.SUCCEEDED


def test_out_of_memory_names_the_frames() -> None:
    bench, bad = clip_bench(), claimed_clip("oom-above:0", num_frames=17)
    bench.run(bad)
    failure = bench.sink.outcomes[bad.id].failure
    assert failure is not None
    assert "17 frame(s) of 64x64 pixels" in failure.message


def test_other_jobs_step_while_a_result_is_stored_and_its_lease_is_kept() -> None:
    blobs = HeldBlobs()
    bench = clip_bench(blobs=blobs, background=BackgroundThread("storing"))
    short, long = claimed_clip(num_inference_steps=1), claimed(num_inference_steps=40)
    bench.engine.admit(short)
    turn_until(bench, blobs.waiting.is_set)
    bench.engine.admit(long)
    for _ in range(10):
        bench.engine.turn()
    assert bench.sink.of(long)[-1].step == 10
    assert bench.sink.status(short) is None
    assert short in bench.engine.held()
    blobs.open.set()
    turn_until(bench, lambda: bench.engine.is_idle)
    assert bench.sink.status(short) is Status.SUCCEEDED
    assert bench.sink.status(long) is Status.SUCCEEDED


def test_results_are_settled_in_the_order_of_decoding() -> None:
    blobs = HeldBlobs()
    bench = clip_bench(blobs=blobs, background=BackgroundThread("storing"))
    jobs = [claimed_clip(num_inference_steps=1) for _ in range(3)]
    for job in jobs:
        bench.engine.admit(job)
    for _ in range(6):
        bench.engine.turn()
    blobs.open.set()
    turn_until(bench, lambda: bench.engine.is_idle)
    assert bench.sink.order == [job.id for job in jobs]


def test_a_cancel_while_storing_is_obeyed_and_the_late_result_ignored() -> None:
    blobs = HeldBlobs()
    bench = clip_bench(blobs=blobs, background=BackgroundThread("storing"))
    cancelled, other = claimed_clip(num_inference_steps=1), claimed_clip(num_inference_steps=2)
    bench.engine.admit(cancelled)
    turn_until(bench, blobs.waiting.is_set)
    bench.engine.post(cancelled, Verdict.CANCEL)
    bench.engine.turn()
    assert bench.sink.status(cancelled) is Status.CANCELLED
    assert bench.engine.is_idle
    bench.engine.admit(other)
    blobs.open.set()
    turn_until(bench, lambda: bench.engine.is_idle)
    assert bench.sink.status(cancelled) is Status.CANCELLED
    assert bench.sink.status(other) is Status.SUCCEEDED


def test_eviction_forgets_results_that_are_not_stored_yet() -> None:
    blobs = HeldBlobs()
    bench = clip_bench(blobs=blobs, background=BackgroundThread("storing"))
    job, waiting, later = (claimed_clip(num_inference_steps=1) for _ in range(3))
    bench.engine.admit(job)
    bench.engine.admit(waiting)
    turn_until(bench, blobs.waiting.is_set)
    bench.engine.turn()
    bench.engine.turn()
    evicted = [evicted for evicted, _ in bench.engine.evict()]
    assert evicted == [waiting, job]
    bench.engine.admit(later)
    blobs.open.set()
    turn_until(bench, lambda: bench.engine.is_idle)
    assert bench.sink.order == [later.id]
    assert not any(key.split("/")[1] == waiting.id for key in blobs)


def test_a_disk_that_takes_nothing_ends_the_engine_instead_of_waiting_for_ever() -> None:
    blobs = HeldBlobs()
    bench = clip_bench(blobs=blobs, background=BackgroundThread("storing"), storing_seconds=60.0)
    job = claimed_clip(num_inference_steps=1)
    bench.engine.admit(job)
    turn_until(bench, blobs.waiting.is_set)
    bench.clock.wait(59.0)
    bench.engine.turn()
    bench.clock.wait(2.0)
    with pytest.raises(StoringStuck, match="60 s"):
        bench.engine.turn()
    assert bench.engine.held() == (job,)
    blobs.open.set()


def test_a_full_store_admits_nobody_before_results_have_left() -> None:
    blobs = HeldBlobs()
    bench = clip_bench(blobs=blobs, background=BackgroundThread("storing"), max_batch_images=1)
    for _ in range(2):
        bench.engine.admit(claimed_clip(num_inference_steps=1))
    for _ in range(4):
        bench.engine.turn()
    assert bench.engine.open_ranks() == 0
    blobs.open.set()
    turn_until(bench, lambda: bench.engine.is_idle)
    assert bench.engine.open_ranks() > 0


def test_while_a_clip_steps_nothing_of_its_sources_is_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources: list[weakref.ref[Any]] = []

    def prepare(pipeline: FakePipeline, request: Any, *rest: Any) -> FakeGeneration:
        sources.append(weakref.ref(request.first_clip.frames))
        return FakeGeneration(replace(request, first_clip=None))

    monkeypatch.setattr(FakeClipPipeline, "prepare", prepare)
    monkeypatch.setattr(inputs, "decode_image", lambda *_, **__: np.zeros((32, 32, 3), np.uint8))
    bench = clip_bench(readers=[BackgroundThread("reader")])
    alive: list[bool] = []

    def look() -> None:
        gc.collect()
        alive.append(sources[0]() is not None)

    bench.pipelines["clips"].on_step = look
    job = claimed_clip(first_frame="a", num_inference_steps=3)
    bench.run(job)
    assert bench.sink.status(job) is Status.SUCCEEDED
    assert alive == [False] * 3


@pytest.mark.parametrize("verdict", [Verdict.CANCEL, Verdict.LEASE_LOST, None])
def test_what_was_computed_for_a_job_that_leaves_is_let_go(
    verdict: Verdict | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    generations: list[weakref.ref[Any]] = []

    def prepare(pipeline: FakePipeline, request: Any, *rest: Any) -> FakeGeneration:
        generation = FakeGeneration(request)
        generations.append(weakref.ref(generation))
        return generation

    monkeypatch.setattr(FakePipeline, "prepare", prepare)
    bench, job = Bench(), claimed(num_inference_steps=50)
    bench.engine.admit(job)
    bench.engine.turn()
    (member,) = bench.engine._members.values()
    assert generations[0]() is not None
    if verdict is None:
        bench.engine.evict()
    else:
        bench.engine.post(job, verdict)
        bench.engine.turn()
    gc.collect()
    # Whoever still has the member does not keep its tensors.
    assert member.job is job
    assert generations[0]() is None
