"""Frames of any size resized to a canvas.

Pixels as files hold them come in, uint8 [T, h, w, 3]; float32 [3, T, height, width] in [-1, 1] goes
out. Frames are turned into numbers and resized one by one, of long strips only the part that is
shown, so that the memory taken follows the size of the canvas and of one frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601, as image libraries turn colours grey."""

# Sides of a canvas that a resized frame may take before it is cut.
_SIDES_RESIZED = 4


def fill(frames: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Frames uint8 [T, h, w, 3] scaled to cover `size` (height, width) and cut to it about the
    centre: [3, T, height, width] in [-1, 1]."""
    filled = torch.empty(3, len(frames), *size)
    for index, frame in enumerate(frames):
        part, outer = _shown_part(frame, frame.shape[:2], size)
        filled[:, index] = _cover(_float(part), outer, size, "bicubic")
    return filled.clamp_(0, 1).mul_(2).sub_(1)


def fill_mask(
    mask: np.ndarray, proportions: Sequence[int], shown: Sequence[int], size: tuple[int, int]
) -> Tensor:
    """The frames `shown` of a mask, [1, len(shown), height, width]: 1 where over one half, else 0.

    The mask, uint8 [T, h, w, 3], is stretched to its source's frame, whose height and width are
    `proportions`, and then takes the source's way onto the canvas.
    """
    weights = torch.tensor(LUMA).view(3, 1, 1)
    filled = torch.empty(1, len(shown), *size)
    for frame in dict.fromkeys(shown):
        part, outer = _shown_part(mask[frame], proportions, size)
        white = (_float(part) * weights).sum(0, keepdim=True)
        made = _cover(white, outer, size, "bilinear") > 0.5
        places = [place for place, index in enumerate(shown) if index == frame]
        filled[:, places] = made.float()[:, None]
    return filled


def fit_inside(picture: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A picture uint8 [h, w, 3], whole, in the middle of white: [3, height, width] in [-1, 1]."""
    height, width = size
    rows, columns = picture.shape[:2]
    scale = min(height / rows, width / columns)
    inner = (
        min(height, max(1, round(rows * scale))),
        min(width, max(1, round(columns * scale))),
    )
    canvas = torch.ones(3, height, width)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    fitted = _resize(_float(picture), inner, "bilinear").clamp(0, 1).mul(2).sub(1)
    canvas[:, top : top + inner[0], left : left + inner[1]] = fitted
    return canvas


def _shown_part(
    frame: np.ndarray, proportions: Sequence[int], size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """What a frame [h, w, 3] of the given `proportions` shows on a canvas of `size`, somewhat more
    than that, and the size that it has to be resized to so as to cover it."""
    scale = max(size[0] / proportions[0], size[1] / proportions[1])
    outer = [max(side, round(own * scale)) for side, own in zip(size, proportions, strict=True)]
    for axis, side in enumerate(size):
        # Resized whole, a strip of one pixel by many thousands would take any amount of memory.
        if outer[axis] > (most := _SIDES_RESIZED * side):
            whole = frame.shape[axis]
            kept = max(1, round(whole * most / outer[axis]))
            start = (whole - kept) // 2
            frame = frame[start : start + kept] if axis == 0 else frame[:, start : start + kept]
            outer[axis] = most
    return frame, (outer[0], outer[1])


def _cover(frame: Tensor, outer: tuple[int, int], size: tuple[int, int], mode: str) -> Tensor:
    """A frame [C, h, w] resized to `outer` and cut to `size` about its centre."""
    frame = _resize(frame, outer, mode)
    top, left = (outer[0] - size[0]) // 2, (outer[1] - size[1]) // 2
    return frame[:, top : top + size[0], left : left + size[1]]


def _resize(frame: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """A frame [C, h, w] at another size, without aliasing; untouched when it has it."""
    if frame.shape[1:] == size:
        return frame
    return F.interpolate(frame[None], size, mode=mode, antialias=True)[0]


def _float(frame: np.ndarray) -> Tensor:
    """uint8 [h, w, 3] to float32 [3, h, w] in [0, 1]."""
    # Pictures come in memory that cannot be written to, which torch warns of.
    pixels = torch.from_numpy(np.require(frame, requirements=("C", "W")))
    return pixels.permute(2, 0, 1).float().div_(255)
