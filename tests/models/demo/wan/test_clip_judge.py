"""The judge of clips against drawn truth: it passes what is right and refuses everything else."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.demo.colours import COLOUR_NAMES, palette
from models.demo.grammar import CORE_COLOURS, CORE_SHAPES
from models.demo.shapes import SHAPES, draw
from models.demo.wan.clip_judge import DIRECTIONS, Motion, direction_of, judge_clip, read_clip

ASKED = Motion("circle", "red", "blue", "right")
SIDE, FRAMES = 64, 9


def drawn(
    shape: str = "circle",
    colour: str = "red",
    background: str = "blue",
    direction: str = "right",
    *,
    radius: float = 12.0,
    way: float = 26.0,
    shapes: tuple[str, ...] | None = None,
) -> Tensor:
    """A clip [3, 9, 64, 64]; `shapes` gives each frame one of its own."""
    dx, dy = DIRECTIONS[direction]
    middle = torch.tensor([SIDE / 2, SIDE / 2])
    along = torch.linspace(-0.5, 0.5, FRAMES)[:, None] * way
    centers = middle + along * torch.tensor([float(dx), float(dy)])
    names = shapes or (shape,) * FRAMES
    colours = palette()
    frames = draw(
        torch.tensor([SHAPES.index(name) for name in names]),
        colours[COLOUR_NAMES.index(colour)].expand(FRAMES, 3),
        colours[COLOUR_NAMES.index(background)].expand(FRAMES, 3),
        centers,
        torch.full((FRAMES,), radius),
        SIDE,
        SIDE,
    )
    return frames.transpose(0, 1)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", CORE_SHAPES)
def test_drawn_truth_passes(shape: str, direction: str) -> None:
    rng = random.Random(f"{shape}-{direction}")
    for radius in (10.0, 13.0, 16.0):
        colour, background = rng.sample(CORE_COLOURS, 2)
        clip = drawn(shape, colour, background, direction, radius=radius)
        verdict = judge_clip(clip, Motion(shape, colour, background, direction))
        assert verdict.passed, verdict.reasons


def test_blur_and_noise_as_of_a_small_autoencoder_are_forgiven() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in CORE_SHAPES:
        clip = F.avg_pool2d(drawn(shape), 3, stride=1, padding=1, count_include_pad=False)
        clip = clip + 0.06 * torch.randn(clip.shape, generator=generator)
        verdict = judge_clip(clip, Motion(shape, "red", "blue", "right"))
        assert verdict.passed, verdict.reasons


@pytest.mark.parametrize(("shape", "other"), list(itertools.permutations(CORE_SHAPES, 2)))
@pytest.mark.parametrize("radius", [10.0, 16.0])
def test_another_shape_is_refused(shape: str, other: str, radius: float) -> None:
    verdict = judge_clip(drawn(shape, radius=radius), Motion(other, "red", "blue", "right"))
    assert not verdict.passed
    assert [name for name, right in verdict.right.items() if not right] == ["shape"]


@pytest.mark.parametrize(("direction", "other"), list(itertools.permutations(DIRECTIONS, 2)))
def test_another_direction_is_refused(direction: str, other: str) -> None:
    verdict = judge_clip(drawn(direction=direction), Motion("circle", "red", "blue", other))
    assert verdict.right == {
        "background": True,
        "colour": True,
        "shape": True,
        "direction": False,
    }


@pytest.mark.parametrize(
    ("attribute", "asked"),
    [
        ("colour", Motion("circle", "orange", "blue", "right")),
        ("background", Motion("circle", "red", "purple", "right")),
    ],
)
def test_another_colour_is_refused(attribute: str, asked: Motion) -> None:
    verdict = judge_clip(drawn(), asked)
    assert [name for name, right in verdict.right.items() if not right] == [attribute]


@pytest.mark.parametrize(
    "clip",
    [
        torch.zeros(3, FRAMES, SIDE, SIDE),
        torch.randn(3, FRAMES, SIDE, SIDE, generator=torch.Generator().manual_seed(0)),
        F.avg_pool2d(drawn("square"), 13, stride=1, padding=6),
        drawn(radius=1.5),
        drawn(radius=60.0),
    ],
    ids=["grey", "noise", "heavy blur", "a dot", "a full frame"],
)
def test_what_is_no_clear_shape_is_refused(clip: Tensor) -> None:
    for shape in CORE_SHAPES:
        assert not judge_clip(clip, Motion(shape, "red", "blue", "right")).passed


def test_a_shape_that_stands_still_or_turns_back_has_no_direction() -> None:
    assert read_clip(drawn(way=0.0))[0].direction is None
    there_and_back = [(0.2 + 0.1 * i, 0.5) for i in range(5)] + [(0.2, 0.5), (0.8, 0.5)]
    assert direction_of(there_and_back) is None
    assert direction_of([(0.2 + 0.1 * i, 0.2 + 0.1 * i) for i in range(5)]) is None
    assert direction_of([None] * 9) is None


def test_a_shape_that_changes_half_way_is_refused() -> None:
    changing = drawn(shapes=("circle",) * 5 + ("triangle",) * 4)
    assert not judge_clip(changing, ASKED).passed
    assert not judge_clip(changing, Motion("triangle", "red", "blue", "right")).passed


def test_what_is_left_open_is_not_judged() -> None:
    assert judge_clip(drawn(), Motion("circle", "red", None, None)).passed
    assert judge_clip(drawn(), Motion("circle", "red", None, None)).right.keys() == {
        "colour",
        "shape",
    }
