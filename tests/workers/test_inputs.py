"""A job's files as its pipeline gets them, and what a missing or broken one does to the job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_harness import Bench, claimed, claimed_clip
from fake_pipeline import FakeClipPipeline, fake_clip_spec, fake_spec
from numpy.typing import NDArray
from PIL import Image

from jobs.blobs import FileBlobStore, input_key
from jobs.types import ClaimedJob, ErrorCode, Status
from models.pipeline import Clip, ImageRequest, Outpaint, VideoRequest
from workers.inputs import SOURCE_PIXELS, InputReader
from workers.video_outputs import encode_clip

CLIPS = fake_clip_spec()
MAX_FRAMES = 20


@pytest.fixture
def store(tmp_path: Path) -> FileBlobStore:
    return FileBlobStore(tmp_path / "blobs")


def flat(colour: tuple[int, int, int], num_frames: int = 1, side: int = 32) -> NDArray[np.uint8]:
    return np.full((num_frames, side, side, 3), colour, dtype=np.uint8)


def put_picture(
    store: FileBlobStore, job: ClaimedJob, field: str, colour: Any, index: int | None = None
) -> None:
    path = store.path(input_key(job.id, field, index))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(flat(colour)[0]).save(path, "PNG")


def put_video(store: FileBlobStore, job: ClaimedJob, field: str, clip: Clip) -> None:
    file = encode_clip(clip, "mp4", quality=100, recipe={})
    store.put(input_key(job.id, field), file.data)


def read(store: FileBlobStore, job: ClaimedJob) -> VideoRequest:
    request = InputReader(store, max_frames=MAX_FRAMES).request(job, CLIPS)
    assert isinstance(request, VideoRequest)
    return request


def test_a_job_without_files_becomes_a_plain_request(store: FileBlobStore) -> None:
    request = read(
        store, claimed_clip("a word", seed=3, num_frames=13, conditioning_scale=[0.5, 1])
    )
    assert (request.prompt, request.seed, request.num_frames, request.fps) == ("a word", 3, 13, 16)
    assert request.conditioning_scale == (0.5, 1)
    assert (request.video, request.mask, request.outpaint) == (None, None, None)
    assert (request.control_video, request.control) == (None, "given")
    assert (request.first_clip, request.last_clip, request.reference_images) == (None, None, ())
    assert request.num_pixels == 13 * 64 * 64


def test_one_conditioning_scale_holds_for_all_layers(store: FileBlobStore) -> None:
    assert read(store, claimed_clip(conditioning_scale=0.7)).conditioning_scale == (0.7,)


def test_a_picture_model_gets_an_image_request(store: FileBlobStore) -> None:
    request = InputReader(store, max_frames=MAX_FRAMES).request(
        claimed("a word", num_images=2), fake_spec()
    )
    assert isinstance(request, ImageRequest)
    assert (request.prompt, request.num_images) == ("a word", 2)


def test_pictures_become_clips_of_one_frame_in_the_order_given(store: FileBlobStore) -> None:
    job = claimed_clip(first_frame="file_a", last_frame="file_b", reference_images=["x", "y"])
    put_picture(store, job, "first_frame", (200, 0, 0))
    put_picture(store, job, "last_frame", (0, 200, 0))
    put_picture(store, job, "reference_images", (0, 0, 200), 0)
    put_picture(store, job, "reference_images", (9, 9, 9), 1)
    request = read(store, job)
    assert request.first_clip is not None
    assert request.last_clip is not None
    np.testing.assert_array_equal(request.first_clip.frames, flat((200, 0, 0)))
    np.testing.assert_array_equal(request.last_clip.frames, flat((0, 200, 0)))
    shown = [tuple(clip.frames[0, 0, 0]) for clip in request.reference_images]
    assert shown == [(0, 0, 200), (9, 9, 9)]


def test_videos_are_decoded_with_their_own_rate(store: FileBlobStore) -> None:
    job = claimed_clip(
        video="v", mask="m", outpaint={"left": 0.5, "right": 0, "top": 0, "bottom": 0}
    )
    put_video(store, job, "video", Clip(flat((90, 90, 90), 7), 24.0))
    put_video(store, job, "mask", Clip(flat((255, 255, 255), 5), 12.0))
    request = read(store, job)
    assert request.video is not None
    assert request.mask is not None
    assert (len(request.video.frames), request.video.fps) == (7, 24)
    assert (len(request.mask.frames), request.mask.fps) == (5, 12)
    assert np.abs(request.video.frames.astype(int) - 90).max() <= 3
    assert request.outpaint == Outpaint(left=0.5, right=0, top=0, bottom=0)


def test_a_mask_may_be_one_picture(store: FileBlobStore) -> None:
    job = claimed_clip(video="v", mask="m")
    put_video(store, job, "video", Clip(flat((90, 90, 90), 7), 24.0))
    put_picture(store, job, "mask", (255, 255, 255))
    mask = read(store, job).mask
    assert mask is not None
    assert mask.frames.shape == (1, 32, 32, 3)


def test_clips_at_both_ends_and_a_control_clip_are_read(store: FileBlobStore) -> None:
    job = claimed_clip(first_clip="a", last_clip="b", control_video="c", control="grey")
    for field, frames in (("first_clip", 3), ("last_clip", 4), ("control_video", 9)):
        put_video(store, job, field, Clip(flat((90, 90, 90), frames), 16.0))
    request = read(store, job)
    clips = (request.first_clip, request.last_clip, request.control_video)
    assert [len(clip.frames) for clip in clips if clip is not None] == [3, 4, 9]
    assert request.control == "grey"


def test_boxes_are_drawn_as_a_control_clip_of_the_canvas(store: FileBlobStore) -> None:
    box = {"start": [0.0, 0.0, 0.5, 0.5], "end": [0.5, 0.5, 1.0, 1.0]}
    request = read(store, claimed_clip(control="layout", layout=[box], num_frames=5))
    assert request.control_video is not None
    assert request.control_video.frames.shape == (5, 64, 64, 3)
    assert request.control == "given"
    assert (request.control_video.frames[0, 0, 0] == 0).all()
    assert (request.control_video.frames[4, 63, 63] == 0).all()


def test_a_source_far_larger_than_the_canvas_is_shrunk_while_it_is_decoded(
    store: FileBlobStore,
) -> None:
    job = claimed_clip(video="v", mask="m", width=32, height=32)
    put_video(store, job, "video", Clip(flat((90, 90, 90), 2, side=256), 16.0))
    put_picture(store, job, "mask", (255, 255, 255))
    video = read(store, job).video
    assert video is not None
    height, width = video.frames.shape[1:3]
    assert 32 * 32 < height * width <= SOURCE_PIXELS * 32 * 32


def test_of_a_source_without_end_only_so_many_frames_are_decoded(store: FileBlobStore) -> None:
    job = claimed_clip(control_video="c")
    put_video(store, job, "control_video", Clip(flat((90, 90, 90), MAX_FRAMES + 5), 16.0))
    control = read(store, job).control_video
    assert control is not None
    assert len(control.frames) == MAX_FRAMES


def nothing(store: FileBlobStore, job: ClaimedJob, field: str, index: int | None) -> None:
    """The file was lost."""


def damage(store: FileBlobStore, job: ClaimedJob, field: str, index: int | None) -> None:
    store.put(input_key(job.id, field, index), b"\x89PNG\r\n\x1a\n and then nothing of the kind")


def text(store: FileBlobStore, job: ClaimedJob, field: str, index: int | None) -> None:
    store.put(input_key(job.id, field, index), b"plain text")


@pytest.mark.parametrize("spoil", [nothing, damage, text])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"first_frame": "a"}, "input.first_frame"),
        ({"last_clip": "a"}, "input.last_clip"),
        ({"control_video": "a"}, "input.control_video"),
        ({"reference_images": ["a"]}, "input.reference_images.0"),
    ],
)
def test_a_file_that_cannot_be_used_fails_the_job_by_the_fields_name_and_no_other_job(
    tmp_path: Path, spoil: Callable[..., None], fields: dict[str, Any], param: str
) -> None:
    bench = Bench(models=("clips",), spec_of=fake_clip_spec, inputs=tmp_path)
    bad, good = claimed_clip(**fields), claimed_clip()
    (field,) = fields
    spoil(FileBlobStore(tmp_path), bad, field, 0 if field == "reference_images" else None)
    bench.run(bad, good)
    failure = bench.sink.outcomes[bad.id].failure
    assert failure is not None
    assert (failure.code, failure.param) == (ErrorCode.INVALID_INPUT, param)
    assert failure.message.startswith(f"{param}: ")
    assert "\n" not in failure.message
    assert str(tmp_path) not in failure.message
    assert not failure.retryable
    assert bench.sink.status(good) is Status.SUCCEEDED


def test_the_pipeline_gets_the_decoded_files_and_the_engine_keeps_none(tmp_path: Path) -> None:
    bench = Bench(models=("clips",), spec_of=fake_clip_spec, inputs=tmp_path)
    job = claimed_clip(first_frame="a")
    put_picture(FileBlobStore(tmp_path), job, "first_frame", (200, 0, 0))
    bench.run(job)
    assert isinstance(bench.pipeline, FakeClipPipeline)
    (request,) = bench.pipeline.requests
    assert request.first_clip is not None
    np.testing.assert_array_equal(request.first_clip.frames, flat((200, 0, 0)))
