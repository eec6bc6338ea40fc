"""A job's files as its pipeline gets them, and what a missing or broken one does to the job."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from engine_harness import Bench, claimed, claimed_clip
from fake_pipeline import FakeClipPipeline, fake_clip_spec, fake_spec
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from jobs.blobs import FileBlobStore, input_key
from jobs.media.info import MediaInfo, MediaLimits
from jobs.media.probe import probe
from jobs.schema import resolve_input
from jobs.types import ClaimedJob, ErrorCode, Status
from models.frame_choice import Steady, played
from models.pipeline import Clip, ImageRequest, Outpaint, VideoRequest
from tests import media_files
from workers import inputs
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
    store: FileBlobStore,
    job: ClaimedJob,
    field: str,
    colour: Any,
    index: int | None = None,
    side: int = 32,
) -> None:
    path = store.path(input_key(job.id, field, index))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(flat(colour, side=side)[0]).save(path, "PNG")


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


def greys(count: int, step: int = 10, side: int = 32) -> NDArray[np.uint8]:
    """Flat frames that grow brighter by `step`."""
    levels = np.arange(count, dtype=np.uint8) * step
    return np.broadcast_to(levels[:, None, None, None], (count, side, side, 3)).copy()


def numbers(clip: Clip | None, step: int = 10) -> list[int]:
    """Which frames of `greys` a clip shows."""
    assert clip is not None
    return [round(float(frame.mean()) / step) for frame in clip.frames]


def test_of_videos_the_frames_that_the_result_shows_are_decoded(store: FileBlobStore) -> None:
    job = claimed_clip(
        video="v", mask="m", outpaint={"left": 0.5, "right": 0, "top": 0, "bottom": 0}
    )
    put_video(store, job, "video", Clip(greys(20), 24.0))
    put_video(store, job, "mask", Clip(greys(20), 24.0))
    request = read(store, job)
    # Nine frames at sixteen a second, of twenty-four.
    assert numbers(request.video) == numbers(request.mask) == [0, 2, 3, 5, 6, 8, 9, 11, 12]
    assert request.video is not None
    assert request.mask is not None
    assert request.video.fps == request.mask.fps == 16
    assert request.outpaint == Outpaint(left=0.5, right=0, top=0, bottom=0)


def test_a_mask_of_another_length_is_stretched_over_its_whole_source(store: FileBlobStore) -> None:
    job = claimed_clip(video="v", mask="m")
    put_video(store, job, "video", Clip(greys(18), 16.0))
    put_video(store, job, "mask", Clip(greys(6, 40), 12.0))
    # The first half of the source is shown, and so the first half of the mask.
    assert numbers(read(store, job).mask, 40) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_resampled_source_reaches_the_pipeline_from_its_first_frame_to_its_last(
    store: FileBlobStore,
) -> None:
    job = claimed_clip(control_video="c", frame_policy="resample", fps=7.2)
    put_video(store, job, "control_video", Clip(greys(17), 16.0))
    control = read(store, job).control_video
    assert numbers(control) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert control is not None
    assert control.fps == 7.2


def test_of_a_long_first_clip_the_end_is_decoded_and_of_a_last_clip_the_beginning(
    store: FileBlobStore,
) -> None:
    job = claimed_clip(first_clip="a", last_clip="b", num_frames=5)
    for field in ("first_clip", "last_clip"):
        put_video(store, job, field, Clip(greys(20), 16.0))
    request = read(store, job)
    assert numbers(request.first_clip) == [15, 16, 17, 18, 19]
    assert numbers(request.last_clip) == [0, 1, 2, 3, 4]


def test_frames_of_a_variable_rate_are_chosen_by_time(store: FileBlobStore, tmp_path: Path) -> None:
    job = claimed_clip(control_video="c")
    media_files.clip(tmp_path / "a.mkv", 5, times=[0, 1, 2, 3, 7])
    store.put(input_key(job.id, "control_video"), (tmp_path / "a.mkv").read_bytes())
    made: list[int] = []
    reader = InputReader(store, max_frames=MAX_FRAMES)
    decode = inputs.decode_video

    def noted(path: Path, choose: Callable[[Any], Any], **options: Any) -> Any:
        def choice(when: Any) -> Any:
            made.extend(choose(when))
            return made

        return decode(path, choice, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "decode_video", noted)
        request = reader.request(job, CLIPS)
    assert isinstance(request, VideoRequest)
    assert made == [0, 1, 2, 3, 3, 3, 3, 4]
    assert request.control_video is not None
    assert len(request.control_video.frames) == 8


@given(
    st.integers(1, 60),
    st.sampled_from([1.0, 8.0, 12.5, 16.0, 24.0, 25.0, 29.97, 30.0, 60.0, 1000.0]),
    st.sampled_from([8.0, 13.2, 16.0, 24.0, 30.0]),
)
def test_the_length_that_a_request_gets_is_what_its_source_fills(
    count: int, source_fps: float, fps: float
) -> None:
    info = MediaInfo(
        kind="video",
        content_type="video/mp4",
        width=64,
        height=64,
        num_frames=count,
        fps=source_fps,
        duration_seconds=count / source_fps,
    )
    file_id = "file_" + "0" * 32
    asked = {"prompt": "x", "control_video": file_id, "fps": fps, "sampler": "flow-euler"}
    resolved = resolve_input(CLIPS, asked, {file_id: info})
    filled = len(played(Steady(count, source_fps), 81, fps))
    # The longest of 4n + 1 frames that it reaches to the end of.
    assert resolved["num_frames"] == (filled - 1) // 4 * 4 + 1


def test_several_threads_may_read_at_a_time(store: FileBlobStore) -> None:
    reader = InputReader(store, max_frames=MAX_FRAMES)
    jobs = [claimed_clip(control_video="c", num_frames=5) for _ in range(4)]
    for number, job in enumerate(jobs):
        put_video(store, job, "control_video", Clip(greys(20)[number:], 16.0))
    with ThreadPoolExecutor(len(jobs)) as threads:
        requests = list(threads.map(lambda job: reader.request(job, CLIPS), jobs))
    for number, request in enumerate(requests):
        assert isinstance(request, VideoRequest)
        assert numbers(request.control_video) == list(range(number, number + 5))


def test_a_resampled_job_reports_the_rate_that_keeps_the_duration(
    store: FileBlobStore, tmp_path: Path
) -> None:
    """From what is known of a file to what is said of the result, through schema and worker."""
    source = encode_clip(Clip(greys(20, side=64), 16.0), "mp4", quality=90, recipe={})
    (tmp_path / "source.mp4").write_bytes(source.data)
    limits = MediaLimits(
        max_pixels=10_000, max_frames=99, max_total_pixels=10**6, max_duration_seconds=9
    )
    info = probe(tmp_path / "source.mp4", limits=limits)
    file_id = "file_" + "0" * 32
    asked = {
        "prompt": "x",
        "num_frames": 9,
        "control_video": file_id,
        "frame_policy": "resample",
        "sampler": "flow-euler",
    }
    resolved = resolve_input(CLIPS, asked, {file_id: info})
    # 1.25 s in nine frames.
    assert resolved["fps"] == 7.2
    bench = Bench(models=("clips",), spec_of=fake_clip_spec, inputs=tmp_path / "blobs")
    job = claimed_clip(**resolved)
    store.put(input_key(job.id, "control_video"), source.data)
    bench.run(job)
    (output,) = bench.sink.outcomes[job.id].outputs
    assert (output.num_frames, output.fps, output.duration_seconds) == (9, 7.2, 1.25)
    with av.open(io.BytesIO(bench.blobs[output.key])) as container:
        stream = container.streams.video[0]
        assert stream.frames == 9
        assert float(stream.average_rate or 0) == pytest.approx(7.2, rel=1e-3)


def test_a_mask_may_be_one_picture(store: FileBlobStore) -> None:
    job = claimed_clip(video="v", mask="m")
    put_video(store, job, "video", Clip(flat((90, 90, 90), 7), 24.0))
    put_picture(store, job, "mask", (255, 255, 255))
    mask = read(store, job).mask
    assert mask is not None
    assert mask.frames.shape == (1, 32, 32, 3)


def test_clips_at_both_ends_and_a_control_clip_are_read(store: FileBlobStore) -> None:
    job = claimed_clip(first_clip="a", last_clip="b", control_video="c", control="grey")
    for field, frames in (("first_clip", 3), ("last_clip", 4), ("control_video", 8)):
        put_video(store, job, field, Clip(flat((90, 90, 90), frames), 16.0))
    request = read(store, job)
    clips = (request.first_clip, request.last_clip, request.control_video)
    assert [len(clip.frames) for clip in clips if clip is not None] == [3, 4, 8]
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


def test_no_picture_far_larger_than_the_canvas_reaches_the_pipeline(store: FileBlobStore) -> None:
    fields = {"video": "v", "mask": "m", "reference_images": ["r"]}
    ends = {"first_frame": "f", "last_frame": "l"}
    edited, joined = (claimed_clip(width=32, height=32, **given) for given in (fields, ends))
    put_video(store, edited, "video", Clip(flat((90, 90, 90), 2), 16.0))
    for job, field, index in (
        (edited, "mask", None),
        (edited, "reference_images", 0),
        (joined, "first_frame", None),
        (joined, "last_frame", None),
    ):
        put_picture(store, job, field, (200, 0, 0), index, side=256)
    asked, also = read(store, edited), read(store, joined)
    for clip in (asked.mask, *asked.reference_images, also.first_clip, also.last_clip):
        assert clip is not None
        np.testing.assert_array_equal(clip.frames, flat((200, 0, 0), side=64))


def test_of_a_source_without_end_only_so_many_frames_are_seen(store: FileBlobStore) -> None:
    job = claimed_clip(first_clip="c")
    put_video(store, job, "first_clip", Clip(greys(MAX_FRAMES + 5), 16.0))
    assert numbers(read(store, job).first_clip)[-1] == MAX_FRAMES - 1


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
