"""Clips as VACE has them encoded: grey in places, in most frames, all over, or without colour."""

from __future__ import annotations

import torch
from torch import Tensor

_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)


def degrade(clips: Tensor, rng: torch.Generator) -> Tensor:
    """A copy of clips [B, 3, T, H, W] in [-1, 1], about a third of them degraded.

    Boxes are cut out or left alone, frames beyond the first or before the last turn grey, some
    clips keep their luma only.
    """
    clips = clips.clone()
    for clip in clips:
        kind = torch.rand((), generator=rng).item()
        if kind < 0.12:
            _box(clip, rng, inside=kind < 0.06)
        elif kind < 0.24 and clip.shape[1] > 1:
            _frames(clip, rng)
        elif kind < 0.30:
            clip.copy_((clip * _LUMA).sum(0, keepdim=True).expand_as(clip))
        elif kind < 0.32:
            clip.zero_()
    return clips


def _box(clip: Tensor, rng: torch.Generator, *, inside: bool) -> None:
    side = clip.shape[-1]
    top, left = torch.randint(0, side * 5 // 8, (2,), generator=rng).tolist()
    height, width = torch.randint(side // 4, side * 3 // 4, (2,), generator=rng).tolist()
    box = (..., slice(top, top + height), slice(left, left + width))
    kept = clip[box].clone()
    if inside:
        clip[box] = 0.0
    else:
        clip.zero_()
        clip[box] = kept


def _frames(clip: Tensor, rng: torch.Generator) -> None:
    grey = (slice(1, None), slice(None, -1), slice(1, -1), slice(None))
    clip[:, grey[int(torch.randint(len(grey), (), generator=rng))]] = 0.0
