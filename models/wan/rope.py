"""Rotary position embedding over frames, rows and columns (Su et al., arXiv:2104.09864).

The size of a grid of tokens goes in, unit complex numbers go out; queries and keys, seen as complex
numbers of neighbouring channels, are multiplied by them. Wan gives frames the first share of a
head's channels and rows and columns a smaller one each.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_THETA = 10_000.0
# A table of 720p and 81 frames takes 39 MB; few grids are in use at a time.
_KEPT_GRIDS = 4


@lru_cache(maxsize=_KEPT_GRIDS)
def rotations(head_dim: int, grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """Rotation of each pair of channels at each token: complex64 [1, tokens, 1, head_dim / 2].

    `grid` counts frames, rows and columns of tokens, which lie in that order, columns fastest.
    Recent grids are remembered.
    """
    side = 2 * (head_dim // 6)
    # The result outlives the call: it may serve training after it was made for inference. And it is
    # made on the CPU, because not every device has float64.
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        angles = []
        for axis, channels in enumerate((head_dim - 2 * side, side, side)):
            steps = torch.arange(0, channels, 2, dtype=torch.float64) / channels
            places = torch.arange(grid[axis], dtype=torch.float64)
            shape = [1, 1, 1, channels // 2]
            shape[axis] = grid[axis]
            angle = (places[:, None] * _THETA**-steps).view(shape)
            angles.append(angle.expand(*grid, -1))
        table = torch.cat(angles, dim=-1).flatten(0, 2)[None, :, None]
        return torch.polar(torch.ones_like(table), table).to(device, torch.complex64)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn float32 queries or keys [B, tokens, heads, head_dim] by `table`; same shape."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2)
