"""The clips of the video demo: one coloured shape that moves over a plain background.

A `ClipScene` is the truth of one clip; `draw_scenes` turns scenes into frames, `draw_references`
into pictures of the shape alone. `random_scene` places what a caption names at random.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.demo.colours import COLOUR_NAMES, COLOURS, palette
from models.demo.shapes import SHAPES, draw
from models.demo.wan.clip_judge import DIRECTIONS, Motion

SIDE, FRAMES = 64, 9

# Radius in pixels, and how far it is off at most.
SIZES: dict[str, float] = {"small": 13.5, "large": 17.0}
_RADIUS_REACH = 0.75
# Way from the first frame to the last, in pixels: of SIDE, so that a large shape stays inside.
_LEAST_WAY, _MOST_WAY = 20.0, 26.0
# How far the middle of the way is off the middle of the picture, along the way and across it.
_ALONG, _ACROSS = 2.0, 10.0
# Levels of 255 between a tint and the colours that it must not be taken for.
_APART = 90.0


@dataclass(frozen=True)
class ClipScene:
    """One clip to draw: names, centre in the first frame, way to the last, radius; in pixels.

    `tint`, sRGB in [-1, 1], takes the place of a colour that has no name.
    """

    shape: str
    colour: str | None
    background: str
    start: tuple[float, float]
    way: tuple[float, float]
    radius: float
    tint: tuple[float, float, float] | None = None


def draw_clips(
    shapes: Tensor,
    foregrounds: Tensor,
    backgrounds: Tensor,
    starts: Tensor,
    ways: Tensor,
    radii: Tensor,
    *,
    frames: int = FRAMES,
    side: int = SIDE,
) -> Tensor:
    """Clips [B, 3, frames, side, side] of shapes that move evenly.

    `shapes` [B] are indices into SHAPES, `foregrounds` and `backgrounds` [B, 3] colours in any
    linear range (it is kept), `starts` [B, 2] centres in the first frame, `ways` [B, 2] from there
    to the last and `radii` [B], in pixels.
    """
    times = torch.linspace(0.0, 1.0, frames) if frames > 1 else torch.zeros(1)
    centers = starts[:, None] + times[None, :, None] * ways[:, None]

    def each_frame(values: Tensor) -> Tensor:
        return values.repeat_interleave(frames, dim=0)

    pictures = draw(
        each_frame(shapes),
        each_frame(foregrounds),
        each_frame(backgrounds),
        centers.flatten(0, 1),
        each_frame(radii),
        side,
        side,
    )
    return pictures.unflatten(0, (-1, frames)).transpose(1, 2).contiguous()


def draw_scenes(scenes: Sequence[ClipScene]) -> Tensor:
    """Clips [B, 3, FRAMES, SIDE, SIDE] in [-1, 1]."""
    colours = palette()
    return draw_clips(
        torch.tensor([SHAPES.index(scene.shape) for scene in scenes]),
        torch.stack([_foreground(scene) for scene in scenes]),
        colours[[COLOUR_NAMES.index(scene.background) for scene in scenes]],
        torch.tensor([scene.start for scene in scenes]),
        torch.tensor([scene.way for scene in scenes]),
        torch.tensor([scene.radius for scene in scenes]),
    )


def draw_references(scenes: Sequence[ClipScene], radii: Sequence[float]) -> Tensor:
    """Pictures [B, 3, SIDE, SIDE] in [-1, 1] of each scene's shape in the middle of white."""
    count = len(scenes)
    return draw(
        torch.tensor([SHAPES.index(scene.shape) for scene in scenes]),
        torch.stack([_foreground(scene) for scene in scenes]),
        torch.ones(count, 3),
        torch.full((count, 2), SIDE / 2),
        torch.tensor(radii),
        SIDE,
        SIDE,
    )


def _foreground(scene: ClipScene) -> Tensor:
    if scene.tint is not None:
        return torch.tensor(scene.tint)
    assert scene.colour is not None
    return palette()[COLOUR_NAMES.index(scene.colour)]


def random_tint(apart_from: Sequence[str], rng: random.Random) -> tuple[float, float, float]:
    """A colour, sRGB in [-1, 1], that nobody would take for one of the named ones given."""
    while True:
        tint = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        if all(math.dist(tint, COLOURS[name]) >= _APART for name in apart_from):
            return tuple(value / 127.5 - 1 for value in tint)  # type: ignore[return-value]


def random_scene(motion: Motion, size: str, rng: random.Random) -> ClipScene:
    """A clip of what is named; place, way and radius vary within what the names allow.

    Raises ValueError when `motion` leaves something open.
    """
    shape, colour, background = motion.shape, motion.colour, motion.background
    direction = motion.direction
    if shape is None or colour is None or background is None or direction is None:
        raise ValueError(f"{motion} leaves something open")
    length = rng.uniform(_LEAST_WAY, _MOST_WAY)
    signs = DIRECTIONS[direction]
    way = (signs[0] * length, signs[1] * length)
    middle = [SIDE / 2 + rng.uniform(-1, 1) * (_ALONG if sign else _ACROSS) for sign in signs]
    start = (middle[0] - way[0] / 2, middle[1] - way[1] / 2)
    radius = SIZES[size] + rng.uniform(-_RADIUS_REACH, _RADIUS_REACH)
    return ClipScene(shape, colour, background, start, way, radius)
