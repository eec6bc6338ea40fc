"""The files that an undisturbed run would have made, byte for byte.

Pixels come from the function that `docs/fake.md` gives, written out once more and without tensors,
the files from the worker's own encoder with the recipe of this machine.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from config.model_spec import ModelSpec
from jobs.types import ClaimedJob
from models.loading import weights_of
from workers.device import Device
from workers.outputs import encode
from workers.recipe import Recipes, checkpoint_digest


class ExpectedFiles:
    """What jobs of the fake model `spec` store; `scratch` is a file for digests."""

    def __init__(self, spec: ModelSpec, scratch: Path) -> None:
        digest = checkpoint_digest(spec.source, weights_of(spec), scratch)
        self._recipes = Recipes(spec.id, digest, Device("cpu", "float32"), "float32")

    def of(self, job: ClaimedJob) -> list[bytes]:
        """The files of a job with a resolved input, in the order of its outputs."""
        given = job.input
        return [
            encode(
                picture(given, index),
                given["output_format"],
                quality=given["output_quality"],
                recipe=self._recipes.of(job, index),
            )
            for index in range(given["num_images"])
        ]


def picture(given: dict[str, Any], index: int) -> Image.Image:
    """Picture `index` of a job with this input."""
    fields = _fields(given["seed"] + index, given["num_inference_steps"])
    size = (given["width"], given["height"])
    return Image.fromarray(fields).resize(size, Image.Resampling.NEAREST)


@cache
def _fields(seed: int, steps: int) -> np.ndarray:
    drawn = hashlib.shake_128(seed.to_bytes(8, "little")).digest(2 * 3 * 64)
    values = np.frombuffer(drawn, "<u2").astype(np.int64)
    previous = np.zeros_like(values)
    for step in range(1, steps + 1):
        values, previous = (
            (25173 * values + 13849 * previous + (2 * seed + 1) * step) % 65536,
            values,
        )
    return (values // 256).astype(np.uint8).reshape(3, 8, 8).transpose(1, 2, 0).copy()
