"""When a clip's frames are shown, made comparable across containers.

Telephones and screen recorders write clips whose frames come when they come; containers round
times. The times of all frames come in, a `Timeline` goes out: even where the rate is meant to be
constant, and otherwise as the file has it, so that whoever picks frames picks them by time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STEADY = 0.25
"""Frames that are off a constant rate by less than this share of its period come at that rate.

Containers round times, WebM to whole milliseconds; that is no variable frame rate.
"""

LINGERING = 2.0
"""A last frame that is shown for more than this many periods makes the rate a variable one."""

PICTURE_SECONDS = 1 / 16
"""How long the only frame of a clip is shown when the file does not say."""


@dataclass(frozen=True)
class Timeline:
    """`times` has a start for every frame, in seconds from the first one's, ascending.

    The last frame is shown until `end`.
    """

    times: tuple[float, ...]
    end: float

    @property
    def fps(self) -> float:
        """Frames a second; the average where the rate varies."""
        return len(self.times) / self.end


def timeline(times: Sequence[float], end: float | None) -> Timeline:
    """From the frames' start times in seconds, ascending, and when the last one ends, if known."""
    count = len(times)
    first, last = times[0], times[-1]
    if count == 1 or last <= first:
        shown = end - first if end is not None and end > first else PICTURE_SECONDS
        return _even(count, shown / count)
    period = (last - first) / (count - 1)
    off = max(abs(time - first - i * period) for i, time in enumerate(times))
    lingers = end is not None and end - last > LINGERING * period
    if off <= STEADY * period and not lingers:
        return _even(count, period)
    ends = end if end is not None and end > last else last + period
    return Timeline(tuple(time - first for time in times), ends - first)


def _even(count: int, period: float) -> Timeline:
    return Timeline(tuple(i * period for i in range(count)), count * period)
