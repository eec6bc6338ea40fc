"""How fast models are loaded on this machine: what tells those who wait for a load its seconds.

Where all models fit, each is loaded once in a process's life, at its start; so what is measured
outlives the process, in a small JSON file in the data directory, by kind of device.
"""

from __future__ import annotations

import math
from pathlib import Path

from workers.json_file import read_json, write_json


class LoadSpeeds:
    """Bytes of weights per second for one kind of device, the newest load counting half.

    Several workers may share the file; of two that write at once, one is not remembered.
    """

    def __init__(self, path: Path, device: str) -> None:
        self._path = path
        self._device = device
        self._bytes_per_second = self._read().get(device)

    def seconds(self, num_bytes: int) -> float | None:
        """What loading so much is expected to take; None before anything was loaded here."""
        if self._bytes_per_second is None:
            return None
        return round(num_bytes / self._bytes_per_second, 3)

    def observe(self, num_bytes: int, seconds: float) -> None:
        """Learn from a load. One without weights, or in no time, tells nothing."""
        if num_bytes <= 0 or seconds <= 0:
            return
        newest = num_bytes / seconds
        known = self._bytes_per_second or newest
        self._bytes_per_second = (known + newest) / 2
        write_json(self._path, {**self._read(), self._device: self._bytes_per_second})

    def _read(self) -> dict[str, float]:
        known = read_json(self._path)
        if not isinstance(known, dict):
            return {}
        return {
            device: float(speed)
            for device, speed in known.items()
            if isinstance(speed, int | float) and 0 < speed < math.inf
        }
