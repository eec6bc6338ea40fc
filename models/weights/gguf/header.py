"""The header of a GGUF file, parsed as untrusted input: version, metadata and tensor records.

Every count, length, dimension, type, offset and size is checked against the length of the file
before anything of that size is allocated, and no tensor is described that does not lie inside the
file, alone. What comes out is small: long arrays are passed over and only described. Nothing here
needs torch.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from types import MappingProxyType
from typing import BinaryIO

from models.errors import CheckpointError, UnsupportedCheckpoint
from models.weights.gguf.bounded_reader import BoundedReader
from models.weights.gguf.foreign import describe_foreign
from models.weights.gguf.format import (
    ALIGNMENT_KEY,
    ARCHITECTURE_KEY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    VERSIONS,
)
from models.weights.gguf.metadata import Value, read_metadata
from models.weights.gguf.tensor_records import TensorInfo, place_tensors, read_records

MAX_TENSORS = 8_192
MAX_METADATA = 4_096
"""Few enough that what Python makes of a header stays within some megabytes, whatever it says."""
LEAST_ALIGNMENT = 8
"""The format's own rule; it also lets every number type be viewed in place."""
MOST_ALIGNMENT = 65_536

_VERSION = Struct("<I")
_COUNTS = Struct("<QQ")
_LEAST_METADATA_BYTES = 8 + 4 + 1
_LEAST_RECORD_BYTES = 8 + 1 + 4 + 8 + 4 + 8
_RECOGNISED_FROM = 64


@dataclass(frozen=True)
class GgufHeader:
    """What a file says about itself; `tensors` are in the order of their records.

    `data_offset` is where tensor data may begin, in bytes from the beginning of the file.
    """

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    alignment: int

    @property
    def architecture(self) -> str | None:
        """The architecture that the metadata name, None where they name none."""
        value = self.metadata.get(ARCHITECTURE_KEY)
        return value if isinstance(value, str) else None


@contextmanager
def open_gguf(path: Path) -> Iterator[tuple[BinaryIO, GgufHeader, int]]:
    """The open file, its header, and its size in bytes.

    Raises CheckpointError naming the file when it cannot be read or `read_header` refuses it.
    """
    try:
        # Opening a pipe would wait for whoever writes to it.
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            found = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise CheckpointError(f"{path}: is {found}, expected a GGUF file")
        handle = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error
    with handle:
        file_size = os.fstat(handle.fileno()).st_size
        try:
            header = read_header(handle, file_size, where=str(path))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        yield handle, header, file_size


def open_header(path: Path) -> GgufHeader:
    """The header of the file at `path`, which is closed again. Raises as `open_gguf` does."""
    with open_gguf(path) as (_, header, _):
        return header


def read_header(handle: BinaryIO, file_size: int, *, where: str) -> GgufHeader:
    """The header of the GGUF file that `handle`, at its beginning, reads.

    `file_size` is the length of the whole file in bytes; `where` names it in errors. Raises
    CheckpointError, one line, when the file is no GGUF file, of an unknown version, big-endian,
    truncated or inconsistent, UnsupportedCheckpoint when it is sound but holds a type of numbers
    that this package does not read.
    """
    reader = BoundedReader(handle, file_size, where)
    _check_magic(reader)
    version = _read_version(reader)
    tensor_count, metadata_count = reader.unpack(_COUNTS, "the number of tensors and metadata")
    _check_count(reader, tensor_count, MAX_TENSORS, _LEAST_RECORD_BYTES, "tensors")
    _check_count(reader, metadata_count, MAX_METADATA, _LEAST_METADATA_BYTES, "metadata entries")
    metadata = read_metadata(reader, metadata_count)
    records = read_records(reader, tensor_count)
    alignment = _alignment(reader, metadata)
    data_offset = -(-reader.offset // alignment) * alignment
    tensors = place_tensors(reader, records, metadata, data_offset=data_offset, alignment=alignment)
    return GgufHeader(version, MappingProxyType(metadata), tensors, data_offset, alignment)


def _check_magic(reader: BoundedReader) -> None:
    start = reader.peek(_RECOGNISED_FROM)
    if not start.startswith(MAGIC):
        raise reader.error(f"expected a GGUF file, found {describe_foreign(start)}")
    reader.skip(len(MAGIC), "the magic number")


def _read_version(reader: BoundedReader) -> int:
    version: int
    (version,) = reader.unpack(_VERSION, "the version")
    if version in VERSIONS:
        return version
    # A small number in the other byte order.
    if version and version & 0xFFFF == 0:
        found = "a big-endian GGUF file, expected a little-endian one"
    else:
        found = f"GGUF version {version}, expected {' or '.join(map(str, VERSIONS))}"
    raise UnsupportedCheckpoint(f"{reader.where}: {found}")


def _check_count(reader: BoundedReader, count: int, most: int, least_bytes: int, noun: str) -> None:
    reader.require(count * least_bytes, f"the header of {count} {noun}")
    if count > most:
        raise reader.error(f"the header counts {count} {noun}, expected at most {most}")


def _alignment(reader: BoundedReader, metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if (
        type(alignment) is not int
        or not LEAST_ALIGNMENT <= alignment <= MOST_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        raise reader.error(
            f"metadata {ALIGNMENT_KEY!r} is {ascii(alignment)[:100]}, "
            f"expected a power of two from {LEAST_ALIGNMENT} to {MOST_ALIGNMENT}"
        )
    return alignment
