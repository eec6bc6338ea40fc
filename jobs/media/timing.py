"""From the times at which a clip's frames are shown to frames at a constant rate.

Telephones and screen recorders write clips whose frames come when they come. Models know only a
frame number, so a frame is shown again or left out until the numbers tell the time.
"""

from __future__ import annotations

from collections.abc import Sequence

STEADY = 0.25
"""Frames that are off a constant rate by less than this share of its period come at that rate.

Containers round times, WebM to whole milliseconds; that is no variable frame rate.
"""

LINGERING = 2.0
"""A last frame that is shown for more than this many periods makes the rate a variable one."""

PICTURE_SECONDS = 1 / 16
"""How long the only frame of a clip is shown when the file does not say."""


def constant_rate(times: Sequence[float], end: float | None) -> tuple[list[int], float]:
    """Which frame to show at each tick of a constant rate, and that rate in frames a second.

    `times` are the frames' start times in seconds, ascending; `end` is when the last one ends, if
    that is known. There are as many ticks as frames, so the rate is the clip's average one.
    """
    count = len(times)
    first, last = times[0], times[-1]
    if count == 1 or last <= first:
        shown = end - first if end is not None and end > first else PICTURE_SECONDS
        return list(range(count)), count / shown
    period = (last - first) / (count - 1)
    off = max(abs(time - first - i * period) for i, time in enumerate(times))
    lingers = end is not None and end - last > LINGERING * period
    if off <= STEADY * period and not lingers:
        return list(range(count)), 1 / period
    duration = (end if end is not None and end > last else last + period) - first
    indices = [0]
    current = 0
    for tick in range(1, count):
        # A frame that starts a rounding error after its tick still has it.
        moment = first + (tick + STEADY) * duration / count
        while current + 1 < count and times[current + 1] <= moment:
            current += 1
        indices.append(current)
    return indices, count / duration
