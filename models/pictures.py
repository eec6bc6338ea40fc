"""Float pictures as networks make them to 8-bit RGB images."""

from __future__ import annotations

from PIL import Image
from torch import Tensor


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures [N, 3, height, width] with values about -1 (black) to 1 to RGB images.

    Values beyond are clamped; each is rounded to the nearest of 256 levels.
    """
    levels = (pictures.float() / 2 + 0.5).clamp(0, 1).mul(255).round().byte()
    pixels = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]
