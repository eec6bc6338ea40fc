"""Encoding and decoding tile by tile, for devices that cannot hold a whole frame's activations.

Tiles overlap and fade into each other, so that seams do not show; the result is close to that of a
whole frame, not equal, since attention sees one tile at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from models.pipeline import KeepGoing, to_the_end
from models.wan.autoencoder import WanAutoencoder
from models.wan.latent_shape import PIXELS_PER_LATENT


@dataclass(frozen=True)
class Tiles:
    """Side of a tile and distance between two, in pixels; both multiples of 8.

    Where they differ tiles overlap. The defaults are those of the reference.
    """

    side: int = 256
    stride: int = 192

    def __post_init__(self) -> None:
        grid = PIXELS_PER_LATENT
        if not 0 < self.stride <= self.side or self.side % grid or self.stride % grid:
            raise ValueError(
                f"tiles of {self.side} pixels every {self.stride}: expected multiples of {grid}, "
                "the stride at most the side"
            )


def decode_tiled(
    autoencoder: WanAutoencoder,
    latents: Tensor,
    tiles: Tiles,
    keep_going: KeepGoing = to_the_end,
) -> Tensor:
    """`autoencoder.decode`, tile by tile; `keep_going` is called for each piece of each tile."""
    side, stride = tiles.side // PIXELS_PER_LATENT, tiles.stride // PIXELS_PER_LATENT
    overlap = tiles.side - tiles.stride
    decode = partial(autoencoder.decode, keep_going=keep_going)
    return _tiled(decode, latents, side, stride, overlap, tiles.stride)


def encode_tiled(
    autoencoder: WanAutoencoder,
    video: Tensor,
    tiles: Tiles,
    keep_going: KeepGoing = to_the_end,
) -> Tensor:
    """`autoencoder.encode`, tile by tile; `keep_going` is called for each piece of each tile."""
    kept = tiles.stride // PIXELS_PER_LATENT
    overlap = tiles.side // PIXELS_PER_LATENT - kept
    encode = partial(autoencoder.encode, keep_going=keep_going)
    return _tiled(encode, video, tiles.side, tiles.stride, overlap, kept)


def _tiled(
    work: Callable[[Tensor], Tensor], x: Tensor, side: int, stride: int, overlap: int, kept: int
) -> Tensor:
    """Work on squares of `side` of `x` every `stride`; of each result `kept` places stay, after
    `overlap` of them were faded into from the neighbours above and to the left."""
    rows: list[Tensor] = []
    above: list[Tensor] = []
    for top in range(0, x.shape[-2], stride):
        row: list[Tensor] = []
        for index, left in enumerate(range(0, x.shape[-1], stride)):
            tile = work(x[..., top : top + side, left : left + side])
            if above:
                _fade(above[index], tile, overlap, axis=-2)
            if row:
                _fade(row[-1], tile, overlap, axis=-1)
            row.append(tile)
        rows.append(torch.cat([tile[..., :kept, :kept] for tile in row], dim=-1))
        above = row
    return torch.cat(rows, dim=-2)


def _fade(before: Tensor, tile: Tensor, overlap: int, *, axis: int) -> None:
    """Let the beginning of `tile` along `axis` grow out of the end of `before`, in place."""
    overlap = min(overlap, before.shape[axis], tile.shape[axis])
    if overlap == 0:
        return
    share = torch.arange(overlap, device=tile.device, dtype=tile.dtype) / overlap
    share = share if axis == -1 else share[:, None]
    end = before.narrow(axis, before.shape[axis] - overlap, overlap)
    start = tile.narrow(axis, 0, overlap)
    start.copy_(end + share * (start - end))
