"""What the fake model is asked for: an `ImageRequest` with time, memory and failure added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.pipeline import ImageRequest

Failure = Literal["none", "error", "out_of_memory", "crash", "hang"]


@dataclass(frozen=True)
class FakeRequest(ImageRequest):
    """A step takes `step_seconds`; `memory_bytes` are held on the device from prepare to the end.

    `failure` happens in step `failure_step`, the first being 1. Running out of memory can depend on
    the batch instead: with `failure_above_images` every step from that one on fails that is taken
    together with more images than so many.
    """

    step_seconds: float = 0.0
    memory_bytes: int = 0
    failure: Failure = "none"
    failure_step: int = 1
    failure_above_images: int | None = None
