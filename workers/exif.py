"""Text inside EXIF: the field UserComment, as JPEG and WebP files carry a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

# Exif 2.32 tags: the Exif directory and in it UserComment, whose first eight bytes name the
# character code; all zero stands for one that the standard does not list, here UTF-8.
_EXIF_DIRECTORY = 0x8769
_USER_COMMENT = 0x9286
_UNLISTED_CODE = bytes(8)


def exif_with_comment(text: bytes | None) -> bytes:
    """An EXIF block with the UTF-8 `text` as its comment; an empty block for None."""
    from PIL.Image import Exif

    exif = Exif()
    if text is not None:
        exif.get_ifd(_EXIF_DIRECTORY)[_USER_COMMENT] = _UNLISTED_CODE + text
    return exif.tobytes()


def comment_of(image: Image) -> str:
    """The comment in the EXIF block of `image`; empty when it has none of ours."""
    comment = image.getexif().get_ifd(_EXIF_DIRECTORY).get(_USER_COMMENT, b"")
    if not isinstance(comment, bytes) or not comment.startswith(_UNLISTED_CODE):
        return ""
    return comment[len(_UNLISTED_CODE) :].decode(errors="replace")
