"""The automatic judge of clips: reads colours, shape and direction of motion from the frames.

Each frame is read like a picture of the image demo, without knowing what was asked; the readings
together tell what the clip shows. Frames are small and come through a small autoencoder, so an
outline may be off by more than in a picture, but a clip must show the same thing from beginning to
end: one good frame is not enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from models.demo.grammar import CORE_SHAPES
from models.demo.judge import Reading, Strictness, read

# A radius is about 12 of 64 pixels here, so this is a pixel and a half; the three shapes of the
# core grammar are further apart than that.
CLIP = Strictness(shapes=CORE_SHAPES, outline=0.12, stray=0.15)

# What must be readable, and alike, in so many of the frames.
FRAME_SHARE = 0.75
# Least way from the first frame to the last, and most drift aside for each pixel of way.
LEAST_WAY, MOST_DRIFT = 0.15, 0.35

DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
"""Signs of the motion in x and in y, which points down."""


@dataclass(frozen=True)
class Motion:
    """What a caption says of a clip; None where it leaves the matter open."""

    shape: str | None
    colour: str | None
    background: str | None
    direction: str | None


@dataclass(frozen=True)
class ClipVerdict:
    """Whether a clip shows what was asked, which attributes are right, and why not."""

    passed: bool
    right: dict[str, bool]
    reasons: tuple[str, ...]
    readings: tuple[Reading, ...]


def read_clip(clip: Tensor) -> tuple[Motion, tuple[Reading, ...]]:
    """What a clip [3, T, H, W] in [-1, 1] shows, and the reading of every frame."""
    readings = tuple(read(frame, CLIP) for frame in clip.unbind(1))
    shown = Motion(
        shape=_common([reading.shape for reading in readings]),
        colour=_common([reading.colour for reading in readings]),
        background=_common([reading.background for reading in readings]),
        direction=direction_of([reading.center for reading in readings]),
    )
    return shown, readings


def judge_clip(clip: Tensor, asked: Motion) -> ClipVerdict:
    """Does a clip [3, T, H, W] in [-1, 1] show what was asked, in everything the words fix?"""
    shown, readings = read_clip(clip)
    right: dict[str, bool] = {}
    reasons = []
    for attribute in ("background", "colour", "shape", "direction"):
        wanted, seen = getattr(asked, attribute), getattr(shown, attribute)
        if wanted is None:
            continue
        right[attribute] = seen == wanted
        if seen != wanted:
            reasons.append(f"{attribute} is {seen or 'not readable'}, asked was {wanted}")
    faults = Counter(fault for reading in readings for fault in reading.faults)
    if reasons and faults:
        reasons.append(faults.most_common(1)[0][0])
    return ClipVerdict(all(right.values()), right, tuple(reasons), readings)


def direction_of(centers: Sequence[tuple[float, float] | None]) -> str | None:
    """The direction in which centres, shares of the sides, move; None when it is none of the four.

    The way is long enough, straight enough, and never turns back by more than a little.
    """
    known = [center for center in centers if center is not None]
    if len(known) < max(2, FRAME_SHARE * len(centers)):
        return None
    way = (known[-1][0] - known[0][0], known[-1][1] - known[0][1])
    axis = 0 if abs(way[0]) >= abs(way[1]) else 1
    sign = 1 if way[axis] > 0 else -1
    if abs(way[axis]) < LEAST_WAY or abs(way[1 - axis]) > MOST_DRIFT * abs(way[axis]):
        return None
    steps = [sign * (after[axis] - before[axis]) for before, after in pairwise(known)]
    if min(steps) < -0.5 * LEAST_WAY:
        return None
    signs = (sign, 0) if axis == 0 else (0, sign)
    return next(name for name, direction in DIRECTIONS.items() if direction == signs)


def _common(values: Sequence[str | None]) -> str | None:
    """The value of most frames, if enough of them have it."""
    value, count = Counter(values).most_common(1)[0]
    return value if count >= FRAME_SHARE * len(values) else None
