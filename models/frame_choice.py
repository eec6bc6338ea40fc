"""Which frames of a source are shown at the frames of a clip, chosen once and by time.

A source's `Timed` frames come in, at whatever rate, constant or not; indices of them go out, one
for each frame of the clip that the source reaches. Nothing is decoded here, so that a reader can
ask first and decode only what is shown.

A frame is shown from its start until the next one's. The next one may come early by half of its
distance, or half a frame of the clip if that is less: at constant rates the nearest frame is shown,
and one that stands for long is not cut short.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from models.pipeline import Clip

_ROUNDING = 1e-6
"""Seconds by which equal times may differ."""


class Timed(Protocol):
    """When frames are shown: `times` in seconds, ascending from 0, and the last one until `end`."""

    @property
    def times(self) -> Sequence[float]: ...

    @property
    def end(self) -> float: ...


@dataclass(frozen=True)
class Steady:
    """Frames at a constant rate."""

    num_frames: int
    fps: float

    @property
    def times(self) -> Sequence[float]:
        return [index / self.fps for index in range(self.num_frames)]

    @property
    def end(self) -> float:
        return self.num_frames / self.fps

    @classmethod
    def of(cls, clip: Clip) -> Steady:
        return cls(len(clip.frames), clip.fps)


def fitted(source: Timed, num_frames: int, fps: float, policy: str) -> list[int]:
    """By `VideoRequest.frame_policy`: "trim" is `played`, "resample" is `spread`."""
    if policy == "resample":
        return spread(source, num_frames)
    return played(source, num_frames, fps)


def played(source: Timed, num_frames: int, fps: float) -> list[int]:
    """At its own speed from its beginning, as long as both last."""
    tick, last = 1 / fps, source.end - _half(source, fps)
    moments = [index * tick for index in range(num_frames)]
    return _shown(source, [moment for moment in moments if last - moment > _ROUNDING], tick)


def ending(source: Timed, num_frames: int, fps: float) -> list[int]:
    """At its own speed up to its last frame, as long as both last."""
    tick, half = 1 / fps, _half(source, fps)
    last = max(source.times[-1], source.end - tick)
    moments = [last - index * tick for index in reversed(range(num_frames))]
    return _shown(source, [moment for moment in moments if moment + half > _ROUNDING], tick)


def spread(source: Timed, num_frames: int) -> list[int]:
    """All of it from the first frame to the last, evenly over the clip."""
    reach = max(source.times[-1], source.end - source.end / num_frames)
    step = reach / max(1, num_frames - 1)
    return _shown(source, [index * step for index in range(num_frames)], step)


def stretched(mask: Timed, source: Timed, shown: Sequence[int]) -> list[int]:
    """Of a mask, those that belong to the frames `shown` of its source.

    One for each where there are as many; otherwise the mask lasts as long as the source does.
    """
    if len(mask.times) == len(source.times):
        return list(shown)
    scale = mask.end / source.end
    tick = mask.end / len(source.times)
    return _shown(mask, [source.times[index] * scale for index in shown], tick)


def _half(source: Timed, fps: float) -> float:
    """How much of a frame of the clip, in seconds, must be reached for it to count."""
    return min(source.end / len(source.times), 1 / fps) / 2


def _shown(source: Timed, moments: Sequence[float], tick: float) -> list[int]:
    times = source.times
    return [_index(times, moment, tick) for moment in moments]


def _index(times: Sequence[float], moment: float, tick: float) -> int:
    following = bisect_right(times, moment + _ROUNDING)
    if following in (0, len(times)):
        return max(0, following - 1)
    early = min(times[following] - times[following - 1], tick) / 2
    return following - (times[following] - moment > early + _ROUNDING)
