"""How many images one step should carry: measured per batch key, not as large as fits.

Whether a larger batch pays depends on model, size and device: an overhead-bound step gains several
times, a compute-bound one nothing, and past the last-level cache throughput falls. `BatchLimits` is
fed with every step's (key, images, seconds), climbs the sizes 1, 2, 4, 8 ... while the images per
second hold up, and from then on answers with the best size seen. It does no I/O and reads no clock;
what ran out of memory it hands to its `Ceilings`, which may remember for longer.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from statistics import median
from typing import Protocol

SAMPLES = 3
"""Steps at a size before it counts as measured (the very first, a warm-up, is thrown away)."""

WINDOW = 7
"""Newest samples kept per size; their median shrugs off hiccups of a shared machine."""

WORTH = 0.98
"""The smallest size within this share of the best throughput wins: it also answers sooner."""

STILL_CLIMBING = 0.9
"""Larger sizes are tried while the largest measured one reaches this share of the best."""

FREE = 1.1
"""A step that takes at most this many times longer is free to those who share it."""

RECHECK = 100
"""A neighbouring size is measured again after so many times the seconds that this takes."""

MAX_KEYS = 512
"""Batch keys remembered; the least recently used is forgotten first."""


class Ceilings(Protocol):
    """What ran out of memory before; `workers.memory_ceilings.MemoryCeilings` keeps it on disk."""

    def of(self, key: Hashable) -> int | None:
        """The most images that may be tried for a key, None for any number."""

    def lower(self, key: Hashable, images: int) -> None:
        """Allow at most `images` from now on."""


class BatchLimits:
    """The best images per step for every batch key, learnt from the steps taken.

    `maximum` bounds every answer, at least 1, and so do `ceilings` from before. With a stationary
    device the throughput over a long saturated run stays within 3 % of one image at a time or
    better, the cost of exploring included, as long as doubling a batch at most halves the images
    per second.
    """

    def __init__(self, maximum: int, ceilings: Ceilings | None = None) -> None:
        if maximum < 1:
            raise ValueError(f"maximum is {maximum}; it must be at least 1")
        self._sizes = _sizes_up_to(maximum)
        self._ceilings = ceilings
        self._curves: OrderedDict[Hashable, _Curve] = OrderedDict()

    def observe(self, key: Hashable, images: int, seconds: float) -> None:
        """Record that a step of `images` images took `seconds` (> 0)."""
        self._curve(key).observe(images, seconds)

    def limit(self, key: Hashable) -> int:
        """Images per step to fill up to: the best known size, or the next one to be tried."""
        return self._curve(key).limit

    def free(self, key: Hashable, images: int) -> int:
        """The largest size whose step takes hardly longer than one of `images` images.

        A size under trial counts as free, so that riders help to measure it.
        """
        return self._curve(key).free(images)

    def shrink(self, key: Hashable, images: int) -> None:
        """Fill batches to at most half of `images` from now on: that many ran out of memory."""
        if images > 1:
            self._curve(key).shrink(images // 2)
            if self._ceilings is not None:
                self._ceilings.lower(key, images // 2)

    def _curve(self, key: Hashable) -> _Curve:
        curve = self._curves.get(key)
        if curve is None:
            ceiling = None if self._ceilings is None else self._ceilings.of(key)
            sizes = tuple(s for s in self._sizes if ceiling is None or s <= ceiling)
            curve = self._curves[key] = _Curve(sizes)
            if len(self._curves) > MAX_KEYS:
                self._curves.popitem(last=False)
        self._curves.move_to_end(key)
        return curve


class _Curve:
    """Throughput over batch size for one key, and the size chosen from it."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self._sizes = sizes
        self._rates: dict[int, deque[float]] = {size: deque(maxlen=WINDOW) for size in sizes}
        self._measured: dict[int, float] = {}  # the median of each size with enough samples
        self._warm: set[int] = set()
        self._settled_seconds = 0.0
        self._look_up = True
        self._trial: tuple[int, int] | None = None
        self.limit = sizes[0]

    def observe(self, images: int, seconds: float) -> None:
        size = next((s for s in self._sizes if s >= images), None)
        if size is not None:
            if size in self._warm:
                self._rates[size].append(images / max(seconds, 1e-9))
                if len(self._rates[size]) >= SAMPLES:
                    self._measured[size] = median(self._rates[size])
            self._warm.add(size)
        if self._trial is not None:
            trial, steps = self._trial
            self._trial = (trial, steps - 1) if steps > 1 else None
        self._settled_seconds += seconds
        self._choose()

    def free(self, images: int) -> int:
        rates = self._measured
        if self.limit not in rates:
            return self.limit
        size = next((s for s in self._sizes if s >= images), None)
        if size not in rates:
            return images
        seconds = size / rates[size]
        cheap = [s for s, rate in rates.items() if s <= self.limit and s / rate <= FREE * seconds]
        return max(cheap, default=images)

    def shrink(self, ceiling: int) -> None:
        self._sizes = tuple(s for s in self._sizes if s <= ceiling)
        self._rates = {size: self._rates[size] for size in self._sizes}
        self._measured = {s: rate for s, rate in self._measured.items() if s <= ceiling}
        self._trial = None
        self._choose()

    def _choose(self) -> None:
        rates = self._measured
        if not rates:
            self.limit = self._sizes[0]
            return
        best = max(rates.values())
        largest = max(rates)
        larger = next((s for s in self._sizes if s > largest), None)
        if self._trial is not None:
            self.limit = self._trial[0]
        elif larger is not None and rates[largest] >= STILL_CLIMBING * best:
            self.limit = larger
            self._settled_seconds = 0.0
        else:
            self.limit = min(s for s, rate in rates.items() if rate >= WORTH * best)
            self._recheck(rates)

    def _recheck(self, rates: dict[int, float]) -> None:
        """Try a neighbour of the settled limit for a few steps, when it is time; up, then down."""
        place = self._sizes.index(self.limit)
        smaller, larger = self._sizes[max(0, place - 1)], self._sizes[place + 1 :][:1]
        neighbour = larger[0] if larger and (self._look_up or place == 0) else smaller
        seconds = SAMPLES * neighbour / rates.get(neighbour, rates[self.limit] / 2)
        if neighbour == self.limit or self._settled_seconds < RECHECK * seconds:
            return
        self.limit = neighbour
        self._rates[neighbour].clear()
        self._measured.pop(neighbour, None)
        self._trial = (neighbour, SAMPLES + 1)
        self._settled_seconds = 0.0
        self._look_up = not self._look_up


def _sizes_up_to(maximum: int) -> tuple[int, ...]:
    sizes = [1]
    while sizes[-1] * 2 <= maximum:
        sizes.append(sizes[-1] * 2)
    return tuple(sizes if sizes[-1] == maximum else [*sizes, maximum])
