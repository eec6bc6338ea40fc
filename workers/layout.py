"""Boxes to a control clip: where things are to be, and where they move, drawn for VACE.

A resolved `layout` comes in, a clip of white frames with the outlines of the boxes in black goes
out, as the layout control of Jiang et al., VACE, arXiv:2503.07598, was trained on. A box moves and
grows linearly and stands at its `end` in the last frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.pipeline import Clip

if TYPE_CHECKING:
    from numpy.typing import NDArray

LINE_PIXELS = 2
"""Thickness of an outline; it lies inside the box."""

Box = Sequence[float]
"""Left, top, right, bottom as fractions 0..1 of the frame's sides."""


def draw_layout(
    boxes: Sequence[Mapping[str, Box | None]],
    *,
    num_frames: int,
    width: int,
    height: int,
    fps: float,
) -> Clip:
    """The control clip of `boxes`, each with its `start` and its `end`; without one it stays."""
    frames = np.full((num_frames, height, width, 3), 255, dtype=np.uint8)
    size = np.array([width, height, width, height], dtype=np.float64)
    for box in boxes:
        start, end = (
            np.asarray(box["start"]) * size,
            np.asarray(box.get("end") or box["start"]) * size,
        )
        for index, frame in enumerate(frames):
            _outline(frame, start + (end - start) * (index / max(1, num_frames - 1)))
    return Clip(frames, fps)


def _outline(frame: NDArray[np.uint8], corners: NDArray[np.float64]) -> None:
    height, width = frame.shape[:2]
    left, top, right, bottom = np.rint(corners).astype(int)
    # A box too thin for its outline, or at the very edge, still shows as a line.
    left, top = min(left, width - 1), min(top, height - 1)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    outline = np.ones((bottom - top, right - left), dtype=bool)
    outline[LINE_PIXELS:-LINE_PIXELS, LINE_PIXELS:-LINE_PIXELS] = False
    frame[top:bottom, left:right][outline] = 0
