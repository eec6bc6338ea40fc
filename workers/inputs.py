"""From a claimed job to the request its pipeline understands, media included.

The resolved input names the job's files; they lie in the blob store under the job's own prefix from
the moment it was accepted. Here they are opened, of clips the frames that the result shows are
chosen and decoded, pictures become clips of one frame, boxes are drawn, and a `VideoRequest` goes
out. A text-to-image input becomes an `ImageRequest`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from config.model_spec import ModelSpec
from jobs.blobs import input_key
from jobs.media.decode import Choice, decode_image, decode_video
from jobs.media.info import MediaError
from jobs.media.pictures import num_frames, open_picture
from jobs.media.sniff import sniff
from jobs.media.timing import Timeline
from jobs.types import ClaimedJob
from models.fake.request import FakeRequest
from models.frame_choice import ending, fitted, played, stretched
from models.pipeline import Clip, ImageRequest, Outpaint, Request, VideoRequest
from workers.layout import draw_layout

T = TypeVar("T")

SOURCE_PIXELS = 4
"""Larger pictures than so many times the canvas are shrunk while decoding: memory for nothing."""

_SOURCES = (
    "video",
    "mask",
    "control_video",
    "layout",
    "first_frame",
    "last_frame",
    "first_clip",
    "last_clip",
    "reference_images",
)
_IMAGE_FIELDS = tuple(field.name for field in fields(ImageRequest))
_FAKE_FIELDS = tuple(field.name for field in fields(FakeRequest))
_PLAIN_FIELDS = (
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "num_frames",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "seed",
    "sampler",
    "frame_policy",
)


class InputError(ValueError):
    """A file of the job cannot be used. `param` is the field that names it, e.g. `input.mask`."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


class BlobFolder(Protocol):
    """Where the files lie; `jobs.blobs.FileBlobStore` is one."""

    def path(self, key: str) -> Path:
        """Where the blob lies, or would."""


class InputReader:
    """Makes the requests of jobs whose files are in `blobs`; of a clip sees at most `max_frames`.

    Holds nothing that changes: any thread may ask, several at a time.
    """

    def __init__(self, blobs: BlobFolder, *, max_frames: int) -> None:
        self._blobs = blobs
        self._max_frames = max_frames

    def has_sources(self, job: ClaimedJob, spec: ModelSpec) -> bool:
        """Whether `request` has frames to decode or to draw, and may take long."""
        return spec.task == "video" and any(job.input.get(field) for field in _SOURCES)

    def request(self, job: ClaimedJob, spec: ModelSpec) -> Request:
        """The job's input as the pipeline of `spec` wants it.

        Raises KeyError naming a field that the record lacks, InputError when a file is gone or does
        not decode.
        """
        if spec.task == "video":
            return self._video_request(job)
        if spec.family == "fake":
            return FakeRequest(**{name: job.input[name] for name in _FAKE_FIELDS})
        return ImageRequest(**{name: job.input[name] for name in _IMAGE_FIELDS})

    def _video_request(self, job: ClaimedJob) -> VideoRequest:
        given = job.input
        plain = {name: given[name] for name in _PLAIN_FIELDS}
        scale = given["conditioning_scale"]
        control = given.get("control")
        video, mask = self._edited(job)
        return VideoRequest(
            **plain,
            conditioning_scale=tuple(scale) if isinstance(scale, list) else (scale,),
            video=video,
            mask=mask,
            outpaint=_outpaint(given.get("outpaint")),
            control_video=_layout(given)
            if control == "layout"
            else self._video(job, "control_video", _fitted(given)),
            control="grey" if control == "grey" else "given",
            first_clip=self._picture(job, "first_frame")
            or self._video(job, "first_clip", _as_long(ending, given)),
            last_clip=self._picture(job, "last_frame")
            or self._video(job, "last_clip", _as_long(played, given)),
            reference_images=self._references(job),
        )

    def _edited(self, job: ClaimedJob) -> tuple[Clip | None, Clip | None]:
        """The source and its mask: one picture, or the frames that belong to the source's."""
        fit = _fitted(job.input)
        found = self._decoded(job, "video", None, partial(self._decode_timed, choose=fit))
        if found is None:
            return None, None
        video, source = found
        shown = fit(source)

        def read_mask(job: ClaimedJob, path: Path) -> Clip:
            if _is_picture(path):
                return self._decode_picture(job, path)
            return self._decode_timed(job, path, lambda mask: stretched(mask, source, shown))[0]

        return video, self._decoded(job, "mask", None, read_mask)

    def _references(self, job: ClaimedJob) -> tuple[Clip, ...]:
        count = len(job.input.get("reference_images") or ())
        clips = [self._picture(job, "reference_images", index) for index in range(count)]
        return tuple(clip for clip in clips if clip is not None)

    def _picture(self, job: ClaimedJob, field: str, index: int | None = None) -> Clip | None:
        return self._decoded(job, field, index, self._decode_picture)

    def _video(self, job: ClaimedJob, field: str, choose: Choice) -> Clip | None:
        found = self._decoded(job, field, None, partial(self._decode_timed, choose=choose))
        return None if found is None else found[0]

    def _decoded(
        self,
        job: ClaimedJob,
        field: str,
        index: int | None,
        decode: Callable[[ClaimedJob, Path], T],
    ) -> T | None:
        if job.input.get(field) is None:
            return None
        param = f"input.{field}" if index is None else f"input.{field}.{index}"
        try:
            return decode(job, self._blobs.path(input_key(job.id, field, index)))
        except FileNotFoundError:
            raise InputError(param, "the job's copy of the file is gone") from None
        except MediaError as error:
            raise InputError(param, str(error)) from None

    def _decode_picture(self, job: ClaimedJob, path: Path) -> Clip:
        most = SOURCE_PIXELS * job.input["width"] * job.input["height"]
        return Clip(decode_image(path, max_pixels=most)[None], job.input["fps"])

    def _decode_timed(self, job: ClaimedJob, path: Path, choose: Choice) -> tuple[Clip, Timeline]:
        """The frames that are shown, at the rate of the result; and when the source's are."""
        frames, source = decode_video(
            path,
            choose,
            max_frames=self._max_frames,
            max_pixels=SOURCE_PIXELS * job.input["width"] * job.input["height"],
        )
        return Clip(frames, job.input["fps"]), source


def _fitted(given: Mapping[str, Any]) -> Choice:
    return partial(
        fitted, num_frames=given["num_frames"], fps=given["fps"], policy=given["frame_policy"]
    )


def _as_long(choose: Callable[..., Sequence[int]], given: Mapping[str, Any]) -> Choice:
    """A choice of as many frames as the result has."""
    return partial(choose, num_frames=given["num_frames"], fps=given["fps"])


def _is_picture(path: Path) -> bool:
    format_, _ = sniff(path)
    if format_ in ("mov", "matroska"):
        return False
    with open_picture(path, format_) as image:
        return num_frames(image) == 1


def _layout(given: Mapping[str, Any]) -> Clip:
    size = {name: given[name] for name in ("num_frames", "width", "height", "fps")}
    return draw_layout(given["layout"], **size)


def _outpaint(sides: Mapping[str, Any] | None) -> Outpaint | None:
    if sides is None or not any(sides.values()):
        return None
    return Outpaint(**sides)
