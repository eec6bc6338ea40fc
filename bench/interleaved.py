"""Timing several variants fairly in one process: round-robin, medians, ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def time_interleaved(
    variants: Mapping[str, Callable[[], Any]], *, rounds: int, warmups: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` per variant, one variant after the other in every round.

    A machine that slows down for a while slows all variants alike, so that their ratios hold.
    """
    for _ in range(warmups):
        for call in variants.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def compare(seconds: Mapping[str, list[float]], baseline: str) -> list[dict[str, Any]]:
    """A row per variant: median and fastest milliseconds, and the ratio to `baseline`.

    `ratio` is the median over rounds of the ratio inside each round.
    """
    rows = []
    for name, values in seconds.items():
        ratios = [own / other for own, other in zip(values, seconds[baseline], strict=True)]
        rows.append(
            {
                "variant": name,
                "median_ms": statistics.median(values) * 1e3,
                "min_ms": min(values) * 1e3,
                "ratio": statistics.median(ratios),
            }
        )
    return rows
