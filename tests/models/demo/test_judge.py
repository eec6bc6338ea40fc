"""The judge against drawn truth: it passes what is right and refuses everything that is not."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.demo.colours import COLOUR_NAMES
from models.demo.dataset import draw_scenes
from models.demo.grammar import POSITIONS, SIZES, Asked, Scene, random_asked, random_scene
from models.demo.judge import judge, read
from models.demo.shapes import SHAPES

ASKED = Asked("circle", "red", "blue", "medium", "center")


def scene(
    shape: str = "circle",
    colour: str = "red",
    background: str = "blue",
    size: str = "medium",
    position: str = "center",
) -> Scene:
    return Scene(shape, colour, background, POSITIONS[position], SIZES[size])


def drawn(scene: Scene, height: int = 128, width: int = 128) -> Tensor:
    return draw_scenes([scene], height, width)[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_drawn_truth_passes_at_every_place(shape: str, size: str) -> None:
    rng = random.Random(f"{shape}-{size}")
    for position in rng.sample(list(POSITIONS), 4):
        colour, background = rng.sample(COLOUR_NAMES, 2)
        asked = Asked(shape, colour, background, size, position)
        verdict = judge(drawn(random_scene(asked, rng), 256, 256), asked)
        assert verdict.passed, verdict.reasons


@pytest.mark.parametrize(("colour", "background"), list(itertools.permutations(COLOUR_NAMES, 2)))
def test_every_pair_of_colours_is_read(colour: str, background: str) -> None:
    reading = read(drawn(scene("square", colour, background)))
    assert (reading.colour, reading.background, reading.shape) == (colour, background, "square")


@pytest.mark.parametrize(("height", "width"), [(128, 128), (192, 320), (320, 192), (512, 512)])
def test_sizes_other_than_the_default_are_judged_alike(height: int, width: int) -> None:
    rng = random.Random(height * width)
    for _ in range(4):
        asked = random_asked(rng, "full", held_out=None)
        verdict = judge(drawn(random_scene(asked, rng), height, width), asked)
        assert verdict.passed, (asked, verdict.reasons)


def test_slight_blur_and_noise_are_forgiven() -> None:
    picture = F.avg_pool2d(drawn(scene("star"), 256, 256)[None], 3, stride=1, padding=1)
    picture = F.interpolate(picture[..., 1:-1, 1:-1], size=(256, 256))[0]
    noise = 0.04 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    assert judge(picture + noise, replace(ASKED, shape="star")).passed


@pytest.mark.parametrize(("shape", "other"), list(itertools.permutations(SHAPES, 2)))
@pytest.mark.parametrize("size", ["small", "large"])
def test_another_shape_is_refused(shape: str, other: str, size: str) -> None:
    verdict = judge(drawn(scene(shape, size=size), 256, 256), Asked(other, "red", "blue"))
    assert verdict.right == {"background": True, "colour": True, "shape": False}
    assert not verdict.passed
    assert verdict.reasons == (f"shape is {shape}, asked was {other}",)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        *(("colour", name) for name in COLOUR_NAMES if name not in ("red", "blue")),
        *(("background", name) for name in COLOUR_NAMES if name not in ("red", "blue")),
        *(("size", name) for name in SIZES if name != "medium"),
        *(("position", name) for name in POSITIONS if name != "center"),
    ],
)
def test_one_wrong_attribute_is_refused_and_named(attribute: str, value: str) -> None:
    verdict = judge(drawn(scene(**{attribute: value})), ASKED)
    assert not verdict.passed
    assert [name for name, is_right in verdict.right.items() if not is_right] == [attribute]
    assert verdict.reasons == (f"{attribute} is {value}, asked was {getattr(ASKED, attribute)}",)


def test_what_was_not_asked_is_not_judged() -> None:
    verdict = judge(drawn(scene(size="large", position="top left")), Asked("circle", "red", "blue"))
    assert verdict.passed
    assert set(verdict.right) == {"background", "colour", "shape"}


def noise() -> Tensor:
    return torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1


def blurred_blob() -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    share = torch.exp(-((rows - 64.0) ** 2 + (columns - 64.0) ** 2) / (2 * 16.0**2))
    red, blue = drawn(scene())[:, 64, 64], drawn(scene())[:, 0, 0]
    return torch.lerp(blue[:, None, None], red[:, None, None], share)


def two_shapes() -> Tensor:
    first, second = drawn(scene(position="left")), drawn(scene(position="right"))
    return torch.where(first == first[:, :1, :1], second, first)


def speckled() -> Tensor:
    picture = drawn(scene()).clone()
    spots = torch.rand(128, 128, generator=torch.Generator().manual_seed(1)) < 0.05
    picture[:, spots] = torch.tensor([1.0, 1.0, -1.0])[:, None]
    return picture


def half_erased() -> Tensor:
    picture = drawn(scene()).clone()
    picture[:, 66:] = picture[:, :1, :1]
    return picture


def two_grounds() -> Tensor:
    picture = drawn(scene())
    other = drawn(scene(background="green"))
    return torch.cat([picture[..., :64], other[..., 64:]], dim=-1)


def wavy() -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    angle = torch.atan2(rows - 64, columns - 64)
    radius = 22.4 * (1 + 0.25 * torch.sin(9 * angle))
    share = (radius - torch.hypot(rows - 64, columns - 64) + 0.5).clamp(0, 1)
    red, blue = drawn(scene())[:, 64, 64], drawn(scene())[:, 0, 0]
    return torch.lerp(blue[:, None, None], red[:, None, None], share)


def too_pale() -> Tensor:
    picture = drawn(scene())
    return torch.lerp(picture[:, :1, :1].expand_as(picture), picture, 0.6)


WRONG_PICTURES = {
    "grey": torch.zeros(3, 128, 128),
    "blank": drawn(scene())[:, :1, :1].expand(3, 128, 128),
    "noise": noise(),
    "blurred_blob": blurred_blob(),
    "two_shapes": two_shapes(),
    "speckled": speckled(),
    "half_erased": half_erased(),
    "two_grounds": two_grounds(),
    "wavy": wavy(),
    "too_pale": too_pale(),
    "washed_out": drawn(scene()) * 0.3,
}


@pytest.mark.parametrize("name", WRONG_PICTURES)
def test_a_picture_of_nothing_asked_is_refused_with_a_reason(name: str) -> None:
    verdict = judge(WRONG_PICTURES[name], Asked("circle", "red", "blue"))
    assert not verdict.passed
    assert verdict.reasons


def test_a_picture_with_values_out_of_range_is_read_as_if_clamped() -> None:
    assert (
        judge(drawn(scene()) * 1.2, ASKED).reading
        == judge((drawn(scene()) * 1.2).clamp(-1, 1), ASKED).reading
    )
