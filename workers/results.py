"""Finished pictures and clips to stored files: recipe inside, digest outside, one `Output` each.

Beside every file lie its variants, the small JPEGs that lists and pages show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from jobs.blobs import execution_prefix, output_key, variant_key
from jobs.types import ClaimedJob, Output
from models.pipeline import Clip, KeepGoing, to_the_end
from workers.outputs import CONTENT_TYPES, encode
from workers.thumbnails import variants
from workers.video_outputs import CLIP_CONTENT_TYPES, encode_clip

if TYPE_CHECKING:
    from PIL.Image import Image

log = structlog.get_logger(__name__)


class BlobSink(Protocol):
    """Where result files go; `jobs.blobs.FileBlobStore` is one."""

    def put(self, key: str, data: bytes) -> object:
        """Store `data` under `key`. Raises OSError when that fails."""

    def delete_prefix(self, prefix: str) -> object:
        """Remove everything below `prefix`. Raises OSError when that fails."""


class RecipeSource(Protocol):
    """What recipes come from; `workers.recipe.Recipes` is one."""

    def of(self, job: ClaimedJob, index: int) -> dict[str, Any]:
        """The recipe of output `index` of `job`."""


class ResultWriter:
    """Stores what jobs have made; `recipes` has one source for every resident model."""

    def __init__(self, blobs: BlobSink, recipes: Mapping[str, RecipeSource]) -> None:
        self._blobs = blobs
        self._recipes = recipes

    def write(
        self,
        job: ClaimedJob,
        media: Sequence[Image] | Clip,
        keep_going: KeepGoing = to_the_end,
    ) -> tuple[Output, ...]:
        """Encode and store all pictures of `job`, or its clip, with their variants.

        Keys are `jobs/<job>/<execution>/<n>.<format>` and `<n>.<variant>.jpg` beside it. An attempt
        has keys of its own, so that one that lost its lease overwrites nothing. `keep_going` is
        called before each file.
        """
        if isinstance(media, Clip):
            return (self._write_clip(job, media, keep_going),)
        return tuple(
            self._write_picture(job, index, image, keep_going) for index, image in enumerate(media)
        )

    def remove(self, job: ClaimedJob) -> None:
        """Remove what `write` has left of this attempt at `job`; what stays is logged."""
        prefix = execution_prefix(job.id, job.execution_id)
        try:
            self._blobs.delete_prefix(prefix)
        except OSError as error:
            log.warning("cannot remove an unwanted result", job=job.id, reason=error.strerror)

    def _write_picture(
        self, job: ClaimedJob, index: int, image: Image, keep_going: KeepGoing
    ) -> Output:
        output_format = job.input["output_format"]
        recipe = self._recipes[job.model].of(job, index)
        data = encode(image, output_format, quality=job.input["output_quality"], recipe=recipe)
        return self._store(
            job,
            index,
            image,
            data,
            keep_going,
            content_type=CONTENT_TYPES[output_format],
            width=image.width,
            height=image.height,
            seed=recipe["input"]["seed"],
        )

    def _write_clip(self, job: ClaimedJob, clip: Clip, keep_going: KeepGoing) -> Output:
        output_format = job.input["output_format"]
        recipe = self._recipes[job.model].of(job, 0)
        file = encode_clip(clip, output_format, quality=job.input["output_quality"], recipe=recipe)
        return self._store(
            job,
            0,
            clip,
            file.data,
            keep_going,
            content_type=CLIP_CONTENT_TYPES[output_format],
            width=file.width,
            height=file.height,
            seed=recipe["input"]["seed"],
            codec=file.codec,
            num_frames=len(clip.frames),
            fps=clip.fps,
            duration_seconds=round(len(clip.frames) / clip.fps, 6),
        )

    def _store(
        self,
        job: ClaimedJob,
        index: int,
        medium: Image | Clip,
        data: bytes,
        keep_going: KeepGoing,
        **facts: Any,
    ) -> Output:
        key = output_key(job.id, job.execution_id, index, job.input["output_format"])
        keep_going()
        self._blobs.put(key, data)
        small = variants(medium)
        for name, jpeg in small.items():
            keep_going()
            self._blobs.put(variant_key(key, name), jpeg)
        return Output(
            key=key,
            bytes=len(data),
            sha256=sha256(data).hexdigest(),
            variants=tuple(small),
            **facts,
        )
