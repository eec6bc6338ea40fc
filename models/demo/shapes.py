"""Coloured shapes drawn by signed-distance functions, batched and antialiased, in plain torch.

Everything the demo models see or are judged by is drawn here: `coverage` gives how much of every
pixel a shape covers, `draw` paints it over a background. Shapes lie in the unit square [-1, 1]
(x to the right, y down) and are scaled by a radius in pixels.

Reference for the distance functions: Inigo Quilez, "2D distance functions".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_SQUARE_SIDE = 0.84
_DIAMOND_WIDTH = 0.72
_RING_OUTER, _RING_INNER = 1.0, 0.5
_CROSS_ARM = 0.34
_STAR_INNER = 0.45
_TRIANGLE_BASE, _TRIANGLE_BOTTOM = 1.0, 0.78


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1.0


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - _SQUARE_SIDE


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    """Apex at (0, -1), base at y = _TRIANGLE_BOTTOM."""
    height = 1.0 + _TRIANGLE_BOTTOM
    length = math.hypot(height, _TRIANGLE_BASE)
    side = (x.abs() * height - (y + 1.0) * _TRIANGLE_BASE) / length
    return torch.maximum(side, y - _TRIANGLE_BOTTOM)


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points, one up: fold the plane to half a point, then one straight edge is left."""
    up = -y
    x = x.abs()
    # Two reflections in the valley next to the upper point bring every point of the star there.
    normal_x, normal_y = math.cos(math.pi / 5), -math.sin(math.pi / 5)
    for _ in range(2):
        beyond = 2.0 * (x * normal_x + up * normal_y).clamp_min(0.0)
        x, up = (x - beyond * normal_x).abs(), up - beyond * normal_y
    edge_x = _STAR_INNER * math.sin(math.pi / 5)
    edge_y = 1.0 - _STAR_INNER * math.cos(math.pi / 5)
    return (x * edge_y + (up - 1.0) * edge_x) / math.hypot(edge_x, edge_y)


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    length = math.hypot(1.0, _DIAMOND_WIDTH)
    return (x.abs() + y.abs() * _DIAMOND_WIDTH - _DIAMOND_WIDTH) / length


def _ring(x: Tensor, y: Tensor) -> Tensor:
    middle, half = (_RING_OUTER + _RING_INNER) / 2, (_RING_OUTER - _RING_INNER) / 2
    return (torch.hypot(x, y) - middle).abs() - half


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    upright = torch.maximum(x - _CROSS_ARM, y - 1.0)
    level = torch.maximum(x - 1.0, y - _CROSS_ARM)
    return torch.minimum(upright, level)


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "diamond": _diamond,
    "ring": _ring,
    "cross": _cross,
}
SHAPES: tuple[str, ...] = tuple(_DISTANCES)


def coverage(shape: str, centers: Tensor, radii: Tensor, height: int, width: int) -> Tensor:
    """How much of each pixel one shape covers, for a batch of places and sizes.

    `centers` [B, 2] are (x, y) in pixels, `radii` [B] in pixels; returns [B, height, width]
    float32 in [0, 1] with edges one pixel wide. Raises KeyError for an unknown shape.
    """
    rows = torch.arange(height, device=radii.device) + 0.5
    columns = torch.arange(width, device=radii.device) + 0.5
    scale = radii[:, None, None]
    x = (columns[None, None, :] - centers[:, 0, None, None]) / scale
    y = (rows[None, :, None] - centers[:, 1, None, None]) / scale
    x, y = torch.broadcast_tensors(x, y)
    return (0.5 - _DISTANCES[shape](x, y) * scale).clamp(0.0, 1.0)


def draw(
    shapes: Tensor,
    foregrounds: Tensor,
    backgrounds: Tensor,
    centers: Tensor,
    radii: Tensor,
    height: int,
    width: int,
) -> Tensor:
    """Paint one shape on a plain background for every member of a batch.

    `shapes` [B] are indices into SHAPES, `foregrounds` and `backgrounds` [B, 3] colours in any
    linear range (it is kept), `centers` [B, 2] and `radii` [B] in pixels. Returns [B, 3, H, W].
    """
    mask = torch.empty(len(shapes), height, width, device=radii.device)
    for index in shapes.unique().tolist():
        chosen = shapes == index
        mask[chosen] = coverage(SHAPES[index], centers[chosen], radii[chosen], height, width)
    return torch.lerp(
        backgrounds[:, :, None, None], foregrounds[:, :, None, None], mask.unsqueeze(1)
    )
