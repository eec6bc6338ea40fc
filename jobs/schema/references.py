"""Which fields of an input name files, and what they may say.

A file is named by the id that its upload got, or brought along as a data URL (RFC 2397). The
server stores the latter and puts the id in its place before the input is resolved.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

FILE_ID = re.compile(r"file_[0-9a-f]{32}")
FILE_PATTERN = r"^(file_[0-9a-f]{32}$|data:)"

MEDIA_FIELDS: Mapping[str, tuple[str, ...]] = {
    "video": ("video",),
    "mask": ("image", "video"),
    "control_video": ("video",),
    "first_frame": ("image",),
    "last_frame": ("image",),
    "first_clip": ("video",),
    "last_clip": ("video",),
    "reference_images": ("image",),
}
"""Fields that name files, and the kinds of media that they take."""


@dataclass(frozen=True)
class FileReference:
    """One file of an input: where it is named (`field`, and `index` in a list) and how."""

    field: str
    index: int | None
    value: str

    @property
    def param(self) -> str:
        """The dotted path of the field, for errors."""
        path = f"input.{self.field}"
        return path if self.index is None else f"{path}.{self.index}"

    @property
    def is_data_url(self) -> bool:
        return self.value.startswith("data:")


def references_in(fields: Mapping[str, Any]) -> list[FileReference]:
    """The files that a validated input names, in the order of the fields."""
    return list(_references(fields))


def _references(fields: Mapping[str, Any]) -> Iterator[FileReference]:
    for field in MEDIA_FIELDS:
        value = fields.get(field)
        if isinstance(value, str):
            yield FileReference(field, None, value)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield FileReference(field, index, item)


def with_ids(fields: Mapping[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """`fields` with each data URL replaced by its file's id; `ids` has them by URL."""
    replaced = dict(fields)
    for field in MEDIA_FIELDS:
        value = fields.get(field)
        if isinstance(value, str):
            replaced[field] = ids.get(value, value)
        elif isinstance(value, list):
            replaced[field] = [
                ids.get(item, item) if isinstance(item, str) else item for item in value
            ]
    return replaced
