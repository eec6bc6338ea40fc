"""Times of calls on a device, whose work goes on after a call has returned."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

ROUNDS = 15


def median_milliseconds(
    variants: Mapping[str, Callable[[], object]], device: torch.device, rounds: int | None = None
) -> dict[str, float]:
    """Median time of each variant, taken in turns after two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range((rounds or ROUNDS) + 2):
        for name, call in variants.items():
            _wait(device)
            started = time.perf_counter()
            call()
            _wait(device)
            if round_number >= 2:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
