"""The VACE context of a canvas: everything the model is told about a clip, as latents.

A `Canvas` comes in; [1, 96, T', H / 8, W / 8] goes out, T' counting one latent for each reference
and (T + 3) / 4 for the clip: 16 channels of what is kept, 16 of what is to be made anew, 64 of the
mask at full resolution. Order of channels and of references follows the official code of Jiang et
al., VACE, arXiv:2503.07598.

Encoding is most of the cost, and most requests encode the same thing: where one of the two halves
holds nothing but grey its latents depend on the shape alone and are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.wan.canvas import Canvas
from models.wan.latent_shape import PIXELS_PER_LATENT, latent_frames

_KEPT_SHAPES = 8

Encoder = Callable[[Tensor], Tensor]
"""Video [1, 3, T, H, W] in [-1, 1] to normalised latents [1, 16, (T + 3) / 4, H / 8, W / 8]."""


class ContextBuilder:
    """Builds contexts with one encoder and remembers the latents of grey clips."""

    def __init__(self, encode: Encoder) -> None:
        self._encode = encode
        self._grey: OrderedDict[torch.Size, Tensor] = OrderedDict()

    def build(self, canvas: Canvas, encode: Encoder | None = None) -> Tensor:
        """The context [1, 96, references + latent frames, H / 8, W / 8], float32.

        `encode` stands in for the builder's own encoder this once: one that may be left half-way.
        """
        encode = encode or self._encode
        video, mask = canvas.video[None], canvas.mask[None]
        kept = self._latents(video * (1 - mask), encode)
        made = self._latents(video * mask, encode)
        context = torch.cat([kept, made, fold_mask(mask).to(kept.device)], dim=1)
        parts = [_reference(picture, encode) for picture in canvas.references]
        return torch.cat([*parts, context], dim=2)

    def _latents(self, video: Tensor, encode: Encoder) -> Tensor:
        if video.any():
            return encode(video)
        if video.shape not in self._grey:
            self._grey[video.shape] = encode(video)
        self._grey.move_to_end(video.shape)
        while len(self._grey) > _KEPT_SHAPES:
            self._grey.popitem(last=False)
        return self._grey[video.shape]


def _reference(picture: Tensor, encode: Encoder) -> Tensor:
    """One latent of a reference [3, H, W]: nothing of it is to be made, its mask is black."""
    latents = encode(picture[None, :, None])
    empty = latents.new_zeros(1, 96 - latents.shape[1], *latents.shape[2:])
    return torch.cat([latents, empty], dim=1)


def fold_mask(mask: Tensor) -> Tensor:
    """Mask [1, 1, T, H, W] to [1, 64, (T + 3) / 4, H / 8, W / 8], values untouched.

    Each 8x8 square becomes 64 channels, row by row; in time the frame nearest to each latent's
    share of the clip is taken.
    """
    side = PIXELS_PER_LATENT
    squares = F.pixel_unshuffle(mask[:, 0], side)
    _, frames, height, width = mask[:, 0].shape
    squares = squares.view(1, frames, side * side, height // side, width // side).transpose(1, 2)
    size = (latent_frames(frames), height // side, width // side)
    return F.interpolate(squares, size=size, mode="nearest-exact")
