"""One canvas for every VACE task: what is known of a clip, where, and what is to be made.

A `VideoRequest` with media of any size, length and frame rate comes in; a `Canvas` of exactly the
requested size and length goes out. All tasks (text, reference, control, inpainting, outpainting,
first and last frames, extension, and their compositions) differ only in what is put on it, so that
the model never sees a source that is out of step with its latents.

Follows the conventions of Jiang et al., VACE, arXiv:2503.07598: mid-grey stands for unknown, a
white mask for what is to be made. Grey is exactly 0 in [-1, 1], which no 8-bit grey is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.pipeline import Clip, VideoRequest

# ITU-R BT.601 luma, as image libraries turn colours grey.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class Canvas:
    """What the autoencoder and the mask folding are given.

    `video` [3, T, H, W] float32 in [-1, 1], 0 where nothing is known; `mask` [1, T, H, W] float32,
    1 where the model makes the picture and 0 where it keeps it; `references`, each [3, H, W].
    """

    video: Tensor
    mask: Tensor
    references: tuple[Tensor, ...]


def paint(request: VideoRequest) -> Canvas:
    """Lay out everything that `request` brings.

    Raises ValueError naming the field when kept frames leave nothing to make.
    """
    size = (request.height, request.width)
    video = torch.zeros(3, request.num_frames, *size)
    mask = torch.ones(1, request.num_frames, *size)
    if request.control_video is not None:
        _place_control(request, request.control_video, video)
    if request.video is not None:
        _place_source(request, request.video, video, mask)
    _place_ends(request, video, mask)
    references = tuple(_reference(clip, size) for clip in request.reference_images)
    return Canvas(video, mask, references)


def frame_indices(
    num_source: int, source_fps: float, num_frames: int, fps: float, policy: str
) -> list[int]:
    """Which frame of a source is shown at each frame of the clip, while the source lasts.

    "trim" plays the source at its own speed and stops at the end of the shorter of the two;
    "resample" spreads the whole source evenly over all frames.
    """
    if policy == "resample":
        step = (num_source - 1) / max(1, num_frames - 1)
        return [_nearest(i * step) for i in range(num_frames)]
    indices = [_nearest(i * source_fps / fps) for i in range(num_frames)]
    return [index for index in indices if index < num_source]


def fill(frames: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Frames uint8 [T, h, w, 3] scaled to cover `size` (height, width) and cut to it about the
    centre: [3, T, height, width] in [-1, 1]."""
    return _cover(_float(frames), size, "bicubic").clamp(0, 1).mul(2).sub(1)


def _place_control(request: VideoRequest, clip: Clip, video: Tensor) -> None:
    shown = _in_time(request, clip)
    frames = fill(clip.frames[shown], (request.height, request.width))
    if request.control == "grey":
        weights = torch.tensor(_LUMA).view(3, 1, 1, 1)
        frames = (frames * weights).sum(0, keepdim=True).expand_as(frames)
    video[:, : len(shown)] = frames


def _place_source(request: VideoRequest, clip: Clip, video: Tensor, mask: Tensor) -> None:
    """The source in its part of the canvas; what its mask asks to be made anew becomes grey."""
    shown = _in_time(request, clip)
    top, bottom, left, right = _inner_box(request)
    size = (bottom - top, right - left)
    frames = fill(clip.frames[shown], size)
    made = torch.zeros(1, len(shown), *size)
    if request.mask is not None:
        made = _mask(request.mask, clip, shown, size)
    # Where something is to be made, a control video that lies there already may guide it.
    region = video[:, : len(shown), top:bottom, left:right]
    region.copy_(frames * (1 - made) + region * made)
    mask[:, : len(shown), top:bottom, left:right] = made


def _place_ends(request: VideoRequest, video: Tensor, mask: Tensor) -> None:
    """The clips that are kept as beginning and end."""
    length, size = request.num_frames, (request.height, request.width)
    kept = 0
    for clip, at_end in ((request.first_clip, False), (request.last_clip, True)):
        if clip is None:
            continue
        shown = frame_indices(len(clip.frames), clip.fps, length, request.fps, "trim")
        kept += len(shown)
        place = slice(length - len(shown), length) if at_end else slice(0, len(shown))
        if kept >= length:
            name = "last_clip" if at_end else "first_clip"
            raise ValueError(
                f"{name}: {kept} of {length} frames would be kept, which leaves none to make"
            )
        video[:, place] = fill(clip.frames[shown], size)
        mask[:, place] = 0.0


def _in_time(request: VideoRequest, clip: Clip) -> list[int]:
    return frame_indices(
        len(clip.frames), clip.fps, request.num_frames, request.fps, request.frame_policy
    )


def _inner_box(request: VideoRequest) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the source on the canvas."""
    beyond = request.outpaint
    if beyond is None:
        return 0, request.height, 0, request.width
    rows, columns = 1 + beyond.top + beyond.bottom, 1 + beyond.left + beyond.right
    top, left = (
        round(request.height * beyond.top / rows),
        round(request.width * beyond.left / columns),
    )
    bottom = request.height - round(request.height * beyond.bottom / rows)
    right = request.width - round(request.width * beyond.right / columns)
    return top, bottom, left, right


def _mask(mask: Clip, source: Clip, shown: list[int], size: tuple[int, int]) -> Tensor:
    """The mask [1, T, height, width] of the source's frames `shown`: 1 where it is over one half.

    It is stretched to the source's frame and then takes the source's way onto the canvas. One of
    another length is stretched in time as well.
    """
    last = len(mask.frames) - 1
    stretch = last / max(1, len(source.frames) - 1)
    chosen = mask.frames[[_nearest(index * stretch) for index in shown]]
    weights = torch.tensor(_LUMA).view(3, 1, 1, 1)
    white = (_float(chosen) * weights).sum(0, keepdim=True)
    source_size = source.frames.shape[1:3]
    white = _resize(white, (source_size[0], source_size[1]), "bilinear")
    return (_cover(white, size, "bilinear") > 0.5).float()


def _reference(clip: Clip, size: tuple[int, int]) -> Tensor:
    """A reference picture, whole, in the middle of a white canvas: [3, height, width]."""
    height, width = size
    picture = _float(clip.frames[:1])
    scale = min(height / picture.shape[-2], width / picture.shape[-1])
    inner = (
        min(height, max(1, round(picture.shape[-2] * scale))),
        min(width, max(1, round(picture.shape[-1] * scale))),
    )
    canvas = torch.ones(3, height, width)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    fitted = _resize(picture, inner, "bilinear")[:, 0].clamp(0, 1).mul(2).sub(1)
    canvas[:, top : top + inner[0], left : left + inner[1]] = fitted
    return canvas


def _cover(frames: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    height, width = size
    scale = max(height / frames.shape[-2], width / frames.shape[-1])
    outer = (
        max(height, round(frames.shape[-2] * scale)),
        max(width, round(frames.shape[-1] * scale)),
    )
    frames = _resize(frames, outer, mode)
    top, left = (outer[0] - height) // 2, (outer[1] - width) // 2
    return frames[..., top : top + height, left : left + width]


def _resize(frames: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Frames [C, T, h, w] at another size, without aliasing; untouched when they have it."""
    if frames.shape[-2:] == size:
        return frames
    resized = F.interpolate(frames.transpose(0, 1), size, mode=mode, antialias=True)
    return resized.transpose(0, 1)


def _float(frames: np.ndarray) -> Tensor:
    """uint8 [T, h, w, 3] to float32 [3, T, h, w] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float().div(255)


def _nearest(value: float) -> int:
    """The nearest whole number, halves upwards; rounding to even would stutter."""
    return int(value + 0.5)
