"""Pictures to files and back: PNG, JPEG or WebP with the recipe that reproduces them inside.

`encode` makes the bytes that the engine stores; `read_recipe` finds the recipe in such a file
again. PNG carries it as the iTXt chunk `denoised`, JPEG and WebP as the EXIF field UserComment,
each as JSON. Equal pictures with equal recipes give equal bytes: no times, no host names.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

KEY = "denoised"

CONTENT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

# Exif 2.32 tags: the Exif directory and in it UserComment, whose first eight bytes name the
# character code; all zero stands for one that the standard does not list, here UTF-8.
_EXIF_DIRECTORY = 0x8769
_USER_COMMENT = 0x9286
_UNLISTED_CODE = bytes(8)

# A quarter of the default's time, while which no step is taken, for some 6 % more bytes.
_PNG_COMPRESSION = 2

# A JPEG segment holds 65,533 bytes, some of which the EXIF directories take.
_MAX_JPEG_RECIPE = 65_000


class RecipeNotFound(ValueError):
    """The file is not a picture, or none that carries a recipe. The message names the file."""


def encode(
    image: Image, output_format: str, *, quality: int | None, recipe: dict[str, Any]
) -> bytes:
    """The file of an RGB `image` as `output_format`, one of png, jpeg, webp.

    `quality`, 1 to 100, counts for jpeg and webp. A recipe over 65,000 bytes does not fit into a
    JPEG and is left out there. Raises ValueError for another format.
    """
    if output_format not in CONTENT_TYPES:
        raise ValueError(f"output_format is {output_format!r}, not one of {[*CONTENT_TYPES]}")
    text = json.dumps(recipe, ensure_ascii=False, separators=(",", ":"))
    file = io.BytesIO()
    if output_format == "png":
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()
        chunks.add_itxt(KEY, text)
        image.save(file, "PNG", pnginfo=chunks, compress_level=_PNG_COMPRESSION)
        return file.getvalue()
    exif = _exif(
        text.encode(), fits=output_format == "webp" or len(text.encode()) < _MAX_JPEG_RECIPE
    )
    if output_format == "jpeg":
        image.save(file, "JPEG", quality=quality, subsampling="4:4:4", exif=exif)
    else:
        image.save(file, "WEBP", quality=quality, exif=exif)
    return file.getvalue()


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe inside the picture at `path`.

    Raises RecipeNotFound when there is none, OSError when the file cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = image.info.get(KEY) or _user_comment(image)
    except UnidentifiedImageError:
        raise RecipeNotFound(f"{path} is not a picture") from None
    try:
        recipe = json.loads(text) if text else None
    except ValueError:
        recipe = None
    if not isinstance(recipe, dict) or KEY not in recipe:
        raise RecipeNotFound(f"{path} carries no recipe")
    return recipe


def preview_jpeg(images: list[Image], *, side: int = 256, max_bytes: int = 16_384) -> bytes:
    """One small JPEG showing all `images` (at least one, equally sized) side by side in a grid.

    Its longer side is `side` pixels, shrunk until it weighs at most `max_bytes`.
    """
    from PIL import Image

    columns = next(n for n in range(1, len(images) + 1) if n * n >= len(images))
    rows = -(-len(images) // columns)
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, rows * height))
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    while True:
        scale = side / max(sheet.size)
        size = (max(1, round(sheet.width * scale)), max(1, round(sheet.height * scale)))
        file = io.BytesIO()
        sheet.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=75)
        if file.tell() <= max_bytes or side <= 16:
            return file.getvalue()
        side = side * 3 // 4


def _exif(text: bytes, *, fits: bool) -> bytes:
    from PIL.Image import Exif

    exif = Exif()
    if fits:
        exif.get_ifd(_EXIF_DIRECTORY)[_USER_COMMENT] = _UNLISTED_CODE + text
    return exif.tobytes()


def _user_comment(image: Image) -> str:
    comment = image.getexif().get_ifd(_EXIF_DIRECTORY).get(_USER_COMMENT, b"")
    if not isinstance(comment, bytes) or not comment.startswith(_UNLISTED_CODE):
        return ""
    return comment[len(_UNLISTED_CODE) :].decode(errors="replace")
