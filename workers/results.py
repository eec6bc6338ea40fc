"""Finished pictures to stored files: recipe inside, digest outside, one `Output` each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

from jobs.blobs import output_key
from jobs.types import ClaimedJob, Output
from workers.outputs import CONTENT_TYPES, encode

if TYPE_CHECKING:
    from PIL.Image import Image


class BlobSink(Protocol):
    """Where result files go; `jobs.blobs.FileBlobStore` is one."""

    def put(self, key: str, data: bytes) -> object:
        """Store `data` under `key`. Raises OSError when that fails."""


class RecipeSource(Protocol):
    """What recipes come from; `workers.recipe.Recipes` is one."""

    def of(self, job: ClaimedJob, index: int) -> dict[str, Any]:
        """The recipe of image `index` of `job`."""


class ResultWriter:
    """Stores the pictures of jobs; `recipes` has one source for every resident model."""

    def __init__(self, blobs: BlobSink, recipes: Mapping[str, RecipeSource]) -> None:
        self._blobs = blobs
        self._recipes = recipes

    def write(self, job: ClaimedJob, images: Sequence[Image]) -> tuple[Output, ...]:
        """Encode and store all pictures of `job`, as `jobs/<job>/<execution>/<n>.<format>`.

        An attempt has keys of its own, so that one that lost its lease overwrites nothing.
        """
        return tuple(self._write(job, index, image) for index, image in enumerate(images))

    def _write(self, job: ClaimedJob, index: int, image: Image) -> Output:
        output_format = job.input["output_format"]
        recipe = self._recipes[job.model].of(job, index)
        data = encode(image, output_format, quality=job.input["output_quality"], recipe=recipe)
        key = output_key(job.id, job.execution_id, index, output_format)
        self._blobs.put(key, data)
        return Output(
            key=key,
            content_type=CONTENT_TYPES[output_format],
            width=image.width,
            height=image.height,
            bytes=len(data),
            sha256=sha256(data).hexdigest(),
            seed=recipe["input"]["seed"],
        )
