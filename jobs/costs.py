"""What jobs cost: learned from those that finished, asked for those that have not begun.

The finish script keeps moving averages in Redis for every model and shape (size, frames, pictures,
guidance on or off) of what each stage takes; steps are counted singly, so that any number of them
can be foretold. A shape that was never measured is scaled from the nearest that was, by its pixels;
a model that was never measured has no estimate.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, cast

from redis.asyncio import Redis

from jobs import keys, scripts
from jobs.errors import store_errors
from jobs.types import Outcome, StageCosts

FRESH_SECONDS = 1.0
"""Averages are read again when they are older than this."""

GUIDED_FACTOR = 2.0
"""Guidance doubles the batch of a step."""


@dataclass(frozen=True)
class Shape:
    """What a step's time depends on, of a job's input."""

    width: int
    height: int
    num_frames: int
    num_images: int
    guided: bool

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Shape:
        """The shape of a resolved input."""
        return cls(
            width=int(request.get("width") or 1),
            height=int(request.get("height") or 1),
            num_frames=int(request.get("num_frames") or 1),
            num_images=int(request.get("num_images") or 1),
            guided=float(request.get("guidance_scale") or 1.0) > 1.0,
        )

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Reads `str(shape)` back."""
        numbers, _, guidance = text.partition("-")
        width, height, num_frames, num_images = map(int, numbers.split("x"))
        return cls(width, height, num_frames, num_images, guidance == "guided")

    def __str__(self) -> str:
        numbers = f"{self.width}x{self.height}x{self.num_frames}x{self.num_images}"
        return f"{numbers}-{'guided' if self.guided else 'plain'}"

    @property
    def pixels(self) -> int:
        """Of everything asked for."""
        return self.width * self.height * self.num_frames * self.num_images


@dataclass(frozen=True)
class Estimate:
    """What one job will take: seconds from its claim to its end, and of device time."""

    run_seconds: float
    gpu_seconds: float


def estimate_from(
    measured: Mapping[Shape, StageCosts], shape: Shape, steps: int
) -> Estimate | None:
    """The estimate for `steps` steps of `shape`; None when nothing is measured."""
    if not measured:
        return None
    nearest = min(measured, key=lambda known: _distance(known, shape))
    guidance = GUIDED_FACTOR ** (shape.guided - nearest.guided)
    pixels, costs = shape.pixels / nearest.pixels, measured[nearest]
    on_device = costs.encoding + costs.decoding * pixels
    steps_of_nearest = steps * pixels * guidance
    return Estimate(
        run_seconds=on_device + steps_of_nearest * costs.step + costs.storing * pixels,
        gpu_seconds=on_device + steps_of_nearest * costs.device_step,
    )


def _distance(known: Shape, shape: Shape) -> tuple[float, bool, bool]:
    """Least for the measured shape that says most about `shape`."""
    ratio = abs(math.log(known.pixels / shape.pixels))
    return ratio, known.guided != shape.guided, known != shape


def finish_arguments(request: Mapping[str, Any], outcome: Outcome) -> list[scripts.Argument]:
    """What the finish script learns from, of a job of this input, or that there is nothing."""
    costs = outcome.costs
    if costs is None:
        return [""]
    steps = outcome.usage.steps
    run_seconds = costs.encoding + steps * costs.step + costs.decoding + costs.storing
    return [str(Shape.of(request)), *astuple(costs), outcome.usage.gpu_seconds, run_seconds]


class CostModel:
    """Estimates for an asyncio server, at most `FRESH_SECONDS` behind what has been measured."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._measured: dict[str, tuple[float, dict[Shape, StageCosts]]] = {}
        self._reading: dict[str, asyncio.Task[dict[Shape, StageCosts]]] = {}

    async def estimate(self, model: str, request: Mapping[str, Any], steps: int) -> Estimate | None:
        """What a job of this resolved input will take; None until the model has been measured.

        Raises `StoreUnavailable`.
        """
        measured = await self._of(model)
        return estimate_from(measured, Shape.of(request), steps)

    async def _of(self, model: str) -> dict[Shape, StageCosts]:
        read_at, measured = self._measured.get(model, (-math.inf, {}))
        if time.monotonic() - read_at <= FRESH_SECONDS:
            return measured
        # One reads for all who wait, and all go on together.
        reading = self._reading.get(model)
        if reading is None:
            reading = self._reading[model] = asyncio.create_task(self._read(model))
        return await asyncio.shield(reading)

    async def _read(self, model: str) -> dict[Shape, StageCosts]:
        try:
            with store_errors():
                fields = await cast("Any", self._redis.hgetall(keys.costs(model)))
        finally:
            del self._reading[model]
        measured = {Shape.parse(k.decode()): _costs(v.decode()) for k, v in fields.items()}
        self._measured[model] = (time.monotonic(), measured)
        return measured


def _costs(text: str) -> StageCosts:
    _count, *averages = text.split()
    return StageCosts(*(float(average) for average in averages))
