"""The drawn shapes: right size, right place, antialiased, all different."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from models.demo.shapes import SHAPES, coverage, draw

AREAS = {
    "circle": math.pi,
    "square": 4 * 0.84**2,
    "triangle": 1.78,
    "diamond": 2 * 0.72,
    "ring": math.pi * (1 - 0.25),
    "cross": 4 * 0.34 * (2 - 0.34),
    "star": 10 * 0.5 * 0.45 * math.sin(math.pi / 5),
}


def mask(shape: str, x: float = 64.0, y: float = 64.0, radius: float = 40.0) -> torch.Tensor:
    return coverage(shape, torch.tensor([[x, y]]), torch.tensor([radius]), 128, 128)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_has_its_geometric_area(shape: str) -> None:
    assert mask(shape).sum().item() == pytest.approx(AREAS[shape] * 40**2, rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_stays_within_its_radius(shape: str) -> None:
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    beyond = torch.maximum((rows + 0.5 - 64).abs(), (columns + 0.5 - 64).abs()) > 40 + 1
    assert mask(shape)[beyond].max() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_its_own_mirror_image(shape: str) -> None:
    assert torch.allclose(mask(shape), mask(shape).flip(1), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_moving_a_shape_by_whole_pixels_moves_its_pixels(shape: str) -> None:
    moved = mask(shape, x=70.0, y=60.0)
    assert torch.allclose(moved, mask(shape).roll((-4, 6), dims=(0, 1)), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_only_a_thin_edge_is_mixed(shape: str) -> None:
    drawn = mask(shape)
    mixed = ((drawn > 0) & (drawn < 1)).sum().item()
    assert 0 < mixed < 15 * 40


@pytest.mark.parametrize("shape", ["triangle", "star"])
def test_a_pointed_shape_has_its_point_at_the_top_of_the_middle(shape: str) -> None:
    drawn = mask(shape) > 0.5
    assert drawn[26, 62:66].any()
    assert not drawn[26, :60].any()
    assert not drawn[102, 62:66].any()


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(SHAPES, 2)))
def test_any_two_shapes_of_one_area_differ_in_a_tenth_of_it(first: str, second: str) -> None:
    one, other = (mask(shape, radius=40 / math.sqrt(AREAS[shape])) for shape in (first, second))
    assert (one - other).abs().sum() > 0.1 * 40**2


def test_colours_are_kept_exactly_inside_and_outside() -> None:
    pictures = draw(
        torch.tensor([0, 1]),
        torch.tensor([[0.5, -0.25, 1.0], [-1.0, 0.0, 0.125]]),
        torch.tensor([[-0.5, 0.25, 0.0], [1.0, 0.75, -0.5]]),
        torch.tensor([[32.0, 32.0], [40.0, 20.0]]),
        torch.tensor([10.0, 12.0]),
        64,
        96,
    )
    assert pictures.shape == (2, 3, 64, 96)
    assert pictures[0, :, 32, 32].tolist() == [0.5, -0.25, 1.0]
    assert pictures[0, :, 0, 0].tolist() == [-0.5, 0.25, 0.0]
    assert pictures[1, :, 20, 40].tolist() == [-1.0, 0.0, 0.125]
    assert pictures[1, :, 63, 95].tolist() == [1.0, 0.75, -0.5]


def test_an_unknown_shape_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="hexagon"):
        mask("hexagon")
