"""How many images of a shape have ever run out of memory: remembered over restarts of the worker.

`BatchLimits` asks for the ceiling of a batch key when it meets it and lowers it when a step ran out
of memory. One small JSON file in the data directory holds them all, by kind of device, model and
shape. What is in it is an experience, not a fact: an entry is forgotten after a week, and a file
that cannot be read or written costs nothing but that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from workers.json_file import read_json, write_json

FORGET_SECONDS = 7 * 86_400.0
"""Whatever filled the memory then may be gone by now."""


class MemoryCeilings:
    """Images per step that may be tried, by batch key, for one kind of device.

    Several workers may share the file; of two that write at once, one may have to learn again.
    `clock` counts seconds since the epoch.
    """

    def __init__(self, path: Path, device: str, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._device = device
        self._clock = clock
        self._known = self._read()

    def of(self, key: Hashable) -> int | None:
        """The most images that may be tried, at least 1; None when none ever were too many."""
        entry = self._known.get(self._name(key))
        return None if entry is None else int(entry["images"])

    def lower(self, key: Hashable, images: int) -> None:
        """From now on at most `images` (at least 1), or fewer where that is known already."""
        known = self.of(key)
        entry = {"images": images if known is None else min(images, known), "at": self._clock()}
        self._known = {**self._read(), self._name(key): entry}
        write_json(self._path, self._known)

    def _name(self, key: Hashable) -> str:
        # Keys are nested tuples of plain values, whose text is the same in every process.
        return f"{self._device} {key!r}"

    def _read(self) -> dict[str, dict[str, Any]]:
        known = read_json(self._path)
        try:
            oldest = self._clock() - FORGET_SECONDS
            return {
                str(name): entry
                for name, entry in known.items()
                if float(entry["at"]) > oldest and int(entry["images"]) >= 1
            }
        except (ValueError, TypeError, KeyError, AttributeError):
            return {}
