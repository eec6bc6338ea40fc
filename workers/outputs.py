"""Pictures to files, and recipes back out of files: PNG, JPEG or WebP with the recipe inside.

`encode` makes the bytes that the engine stores; `read_recipe` finds the recipe in such a file, or
in a clip of `workers.video_outputs`, again. PNG carries it as the iTXt chunk `denoised`, JPEG and
WebP as the EXIF field UserComment, each as JSON. Equal pictures with equal recipes give equal
bytes: no times, no host names.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.media.info import MediaError
from jobs.media.sniff import sniff
from workers.exif import comment_of, exif_with_comment

if TYPE_CHECKING:
    from PIL.Image import Image

KEY = "denoised"

COMMENT = "comment"
"""The tag of MP4 and WebM files that holds the recipe."""

CONTENT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

# A quarter of the default's time, while which no step is taken, for some 6 % more bytes.
_PNG_COMPRESSION = 2

# A JPEG segment holds 65,533 bytes, some of which the EXIF directories take.
_MAX_JPEG_RECIPE = 65_000


class RecipeNotFound(ValueError):
    """The file is not a picture or clip, or none that carries a recipe. The message names it."""


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
    comment = text.encode()
    fits = output_format == "webp" or len(comment) < _MAX_JPEG_RECIPE
    exif = exif_with_comment(comment if fits else None)
    if output_format == "jpeg":
        image.save(file, "JPEG", quality=quality, subsampling="4:4:4", exif=exif)
    else:
        image.save(file, "WEBP", quality=quality, exif=exif)
    return file.getvalue()


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe inside the picture or clip at `path`.

    Raises RecipeNotFound when there is none, OSError when the file cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = image.info.get(KEY) or comment_of(image)
    except UnidentifiedImageError:
        text = _clip_comment(path)
    try:
        recipe = json.loads(text) if text else None
    except ValueError:
        recipe = None
    if not isinstance(recipe, dict) or KEY not in recipe:
        raise RecipeNotFound(f"{path} carries no recipe")
    return recipe


def _clip_comment(path: Path) -> str | None:
    import av

    try:
        format_, _ = sniff(path)
        with av.open(str(path), format=format_, metadata_errors="replace") as container:
            tags = {name.lower(): text for name, text in container.metadata.items()}
    except (MediaError, av.FFmpegError):
        raise RecipeNotFound(f"{path} is not a picture or clip") from None
    return tags.get(COMMENT)
