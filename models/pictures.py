"""Float pictures and clips as networks make them to 8-bit RGB."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures [N, 3, height, width] with values about -1 (black) to 1 to RGB images.

    Values beyond are clamped; each is rounded to the nearest of 256 levels.
    """
    return [Image.fromarray(picture) for picture in _pixels(pictures.permute(0, 2, 3, 1))]


def to_frames(video: Tensor) -> NDArray[np.uint8]:
    """A clip [3, T, height, width], values about -1 (black) to 1, to uint8 [T, height, width, 3].

    Rounded and clamped as `to_images` does.
    """
    return _pixels(video.permute(1, 2, 3, 0))


def _pixels(values: Tensor) -> NDArray[np.uint8]:
    levels = (values.float() / 2 + 0.5).clamp(0, 1).mul(255).round().byte()
    pixels: NDArray[np.uint8] = levels.contiguous().cpu().numpy()
    return pixels
