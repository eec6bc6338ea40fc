"""GGUF files put together byte by byte, so that each field can be made wrong on its own."""

from __future__ import annotations

import struct
from collections.abc import Sequence

UINT8, UINT32, FLOAT32, BOOL, STRING, ARRAY = 0, 4, 6, 7, 8, 9
F32, Q8_0 = 0, 8


def string(text: bytes | str) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def entry(key: bytes | str, value_type: int, value: bytes) -> bytes:
    """One metadata entry."""
    return string(key) + struct.pack("<I", value_type) + value


def text_entry(key: str, text: str) -> bytes:
    return entry(key, STRING, string(text))


def array_entry(key: str, item_type: int, length: int, items: bytes) -> bytes:
    return entry(key, ARRAY, struct.pack("<IQ", item_type, length) + items)


def record(
    name: bytes | str, shape: Sequence[int] = (8,), type_: int = F32, offset: int = 0
) -> bytes:
    """One tensor record; `shape` in torch's order."""
    return string(name) + struct.pack(
        f"<I{len(shape)}QIQ", len(shape), *reversed(shape), type_, offset
    )


def file(
    records: Sequence[bytes] = (),
    metadata: Sequence[bytes] = (),
    *,
    data: bytes = bytes(256),
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A whole file; tensor offsets count from the beginning of `data`."""
    counts = struct.pack("<IQQ", version, len(records), len(metadata))
    head = b"GGUF" + counts + b"".join(metadata) + b"".join(records)
    return head + bytes(-len(head) % alignment) + data
