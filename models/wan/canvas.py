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

import torch
from torch import Tensor

from models.frame_choice import Steady, ending, fitted, played, stretched
from models.pipeline import Clip, VideoRequest
from models.wan.fitting import LUMA, fill, fill_mask, fit_inside
from models.wan.latent_shape import FRAMES_PER_LATENT


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
    references = tuple(fit_inside(clip.frames[0], size) for clip in request.reference_images)
    return Canvas(video, mask, references)


def _place_control(request: VideoRequest, clip: Clip, video: Tensor) -> None:
    shown = _in_time(request, clip)
    frames = fill(clip.frames[shown], (request.height, request.width))
    if request.control == "grey":
        weights = torch.tensor(LUMA).view(3, 1, 1, 1)
        frames = (frames * weights).sum(0, keepdim=True).expand_as(frames)
    video[:, : len(shown)] = frames


def _place_source(request: VideoRequest, clip: Clip, video: Tensor, mask: Tensor) -> None:
    """The source in its part of the canvas.

    What its mask asks to be made anew shows the control, which guides it, and else grey.
    """
    shown = _in_time(request, clip)
    top, bottom, left, right = _inner_box(request)
    size = (bottom - top, right - left)
    frames = fill(clip.frames[shown], size)
    made = torch.zeros(1, len(shown), *size)
    if request.mask is not None:
        chosen = stretched(Steady.of(request.mask), Steady.of(clip), shown)
        made = fill_mask(request.mask.frames, clip.frames.shape[1:3], chosen, size)
    region = video[:, : len(shown), top:bottom, left:right]
    region.mul_(made).add_(frames.mul_(1 - made))
    mask[:, : len(shown), top:bottom, left:right] = made


def _place_ends(request: VideoRequest, video: Tensor, mask: Tensor) -> None:
    """The clips that are kept as beginning and end, each next to what is made.

    Where they are too long, one latent is left to make: a beginning is cut at its own beginning, an
    end at its own end, and of two each has a right to half of the room.
    """
    length, size = request.num_frames, (request.height, request.width)
    before, after = request.first_clip, request.last_clip
    room = max(1, length - FRAMES_PER_LATENT)
    first = ending(Steady.of(before), room, request.fps) if before is not None else []
    last = played(Steady.of(after), room, request.fps) if after is not None else []
    last = last[: max(room - len(first), (room + 1) // 2)]
    first = first[-max(1, room - len(last)) :]
    kept = len(first) + len(last)
    if kept >= length:
        name = "last_clip" if last else "first_clip"
        raise ValueError(
            f"{name}: {kept} of {length} frames would be kept, which leaves none to make"
        )
    for clip, shown, start in ((before, first, 0), (after, last, length - len(last))):
        if clip is not None:
            place = slice(start, start + len(shown))
            video[:, place] = fill(clip.frames[shown], size)
            mask[:, place] = 0.0


def _in_time(request: VideoRequest, clip: Clip) -> list[int]:
    return fitted(Steady.of(clip), request.num_frames, request.fps, request.frame_policy)


def _inner_box(request: VideoRequest) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the source on the canvas."""
    beyond = request.outpaint
    if beyond is None:
        return 0, request.height, 0, request.width
    rows, columns = 1 + beyond.top + beyond.bottom, 1 + beyond.left + beyond.right
    top = round(request.height * beyond.top / rows)
    left = round(request.width * beyond.left / columns)
    bottom = request.height - round(request.height * beyond.bottom / rows)
    right = request.width - round(request.width * beyond.right / columns)
    return top, bottom, left, right
