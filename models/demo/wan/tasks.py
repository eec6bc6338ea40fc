"""What the video demo's transformer is shown in training: a true clip, partly covered.

A clip comes in, a `Canvas` as a request would make it goes out: with nothing on it, with the first
or last frames, with a box that is to be painted anew or all but one, with the clip in grey, or with
a picture of its shape.
"""

from __future__ import annotations

import random
from typing import Literal, get_args

import torch
from torch import Tensor

from models.demo.wan.clips import FRAMES, SIDE, ClipScene
from models.wan.canvas import Canvas

Task = Literal["first", "last", "ends", "inpaint", "outpaint", "grey", "reference"]
TASKS: tuple[Task, ...] = get_args(Task)

SHOWN: frozenset[Task] = frozenset({"first", "last", "ends", "outpaint", "reference"})
"""Tasks in which the model sees what the shape looks like, so that a caption need not say it."""

GROUND_SHOWN: frozenset[Task] = frozenset({"first", "last", "ends", "inpaint", "outpaint"})
"""Tasks in which the model sees the background."""

_LUMA = (0.299, 0.587, 0.114)
_LEAST_BOX, _MOST_BOX = 28, 56
_MOST_MARGIN = 20


def empty_canvas() -> Canvas:
    """Nothing known: what a text-to-video request makes."""
    return Canvas(torch.zeros(3, FRAMES, SIDE, SIDE), torch.ones(1, FRAMES, SIDE, SIDE), ())


def cover(
    task: Task, clip: Tensor, reference: Tensor, scene: ClipScene, rng: random.Random
) -> Canvas:
    """The canvas of one training sample.

    `clip` [3, FRAMES, SIDE, SIDE] and `reference` [3, SIDE, SIDE] in [-1, 1] show `scene`.
    """
    mask = torch.ones(1, FRAMES, SIDE, SIDE)
    if task == "reference":
        return Canvas(torch.zeros_like(clip), mask, (reference,))
    if task == "grey":
        luma = (clip * torch.tensor(_LUMA).view(3, 1, 1, 1)).sum(0, keepdim=True)
        return Canvas(luma.expand_as(clip).contiguous(), mask, ())
    if task in ("first", "ends"):
        mask[:, : 1 if task == "ends" else rng.choice((1, 1, 1, 5))] = 0
    if task in ("last", "ends"):
        mask[:, -(1 if task == "ends" else rng.choice((1, 1, 1, 4))) :] = 0
    if task == "inpaint":
        top, bottom, left, right = _way_box(scene, rng) if rng.random() < 0.6 else _box(rng)
        mask.zero_()
        mask[..., top:bottom, left:right] = 1
    if task == "outpaint":
        top, bottom, left, right = (rng.randrange(_MOST_MARGIN) for _ in range(4))
        mask[..., top : SIDE - bottom, left : SIDE - right] = 0
    return Canvas(clip * (1 - mask), mask, ())


def _box(rng: random.Random) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of any box."""
    height, width = (rng.randint(_LEAST_BOX, _MOST_BOX) for _ in range(2))
    top, left = rng.randint(0, SIDE - height), rng.randint(0, SIDE - width)
    return top, top + height, left, left + width


def _way_box(scene: ClipScene, rng: random.Random) -> tuple[int, int, int, int]:
    """A box around all of the shape's way, so that nothing of the shape is left to be seen."""
    sides = []
    for axis in (1, 0):
        ends = (scene.start[axis], scene.start[axis] + scene.way[axis])
        near = min(ends) - scene.radius - rng.uniform(1, 8)
        far = max(ends) + scene.radius + rng.uniform(1, 8)
        sides += [max(0, int(near)), min(SIDE, int(far) + 1)]
    return sides[0], sides[1], sides[2], sides[3]
