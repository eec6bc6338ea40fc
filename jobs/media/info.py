"""What is known about a picture or a clip once it has been decoded, and what is accepted.

Plain data, so that the request schema and the HTTP side can use it without loading a decoder.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["image", "video"]

ACCEPTED = (
    "PNG, JPEG, WebP and GIF pictures (animated ones are clips), and MP4, MOV, WebM and MKV clips"
)
"""The file formats taken, in words; `sniff` has the signatures, `videos` the codecs."""


class MediaError(Exception):
    """A file that is no usable picture or clip; one line that goes after the field's name."""


class ChecksBusy(Exception):
    """So many files wait to be checked that no more are taken. `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many files are being checked; try again in {retry_after} s")
        self.retry_after = retry_after


class MediaLimits(BaseModel):
    """Bounds of what is decoded; each is checked before or while frames are made, not after."""

    model_config = ConfigDict(frozen=True)

    max_pixels: int = Field(ge=1, description="Most width * height of a picture or a frame.")
    max_frames: int = Field(ge=1, description="Most frames of a clip.")
    max_total_pixels: int = Field(ge=1, description="Most pixels of all frames together.")
    max_duration_seconds: float = Field(gt=0, description="Longest clip.")


class MediaInfo(BaseModel):
    """A picture or a clip as `decode` gives it: upright and without alpha.

    `width` and `height` are pixels after `rotation` (degrees counterclockwise that the file asks
    for, and that are applied). `fps` is the average where the rate varies. A picture has one frame;
    its `fps` and `duration_seconds` are None.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    content_type: str
    width: int
    height: int
    num_frames: int = 1
    fps: float | None = None
    duration_seconds: float | None = None
    has_alpha: bool = False
    rotation: Literal[0, 90, 180, 270] = 0
