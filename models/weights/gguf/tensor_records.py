"""The tensor records of a GGUF file: name, shape, type and place, each held against the file.

A record is believed only when its blocks fit its shape and its bytes lie inside the file, aligned,
and overlap no other tensor's. The checks need integers of any size, which Python has, so that no
product of dimensions can wrap around.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct
from typing import NamedTuple

from models.errors import UnsupportedCheckpoint
from models.weights.gguf.bounded_reader import BoundedReader
from models.weights.gguf.format import (
    BLOCK,
    MAX_DIMENSIONS,
    SHAPE_KEY,
    UNSUPPORTED_TYPES,
    QuantType,
)
from models.weights.gguf.metadata import ArrayInfo, Value, read_text, shown

MAX_NAME_BYTES = 512
"""ggml allows 63, files with longer names exist."""

_DIMENSION_COUNT = Struct("<I")
_DIMENSIONS = {count: Struct(f"<{count}Q") for count in range(1, MAX_DIMENSIONS + 1)}
_TYPE_AND_OFFSET = Struct("<IQ")
_TYPES = {int(member): member for member in QuantType}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `shape` in torch's order, `nbytes` bytes of data from byte `offset` of the file.

    The blocks run along the last dimension as stored. Where the file keeps the tensor's own shape
    in its metadata because it was stored in another one, `shape` is the tensor's own, and its last
    dimension need not be a whole number of blocks.
    """

    name: str
    shape: tuple[int, ...]
    type: QuantType
    offset: int
    nbytes: int


class Record(NamedTuple):
    """A record as the file has it: `stored_shape` in torch's order, offset within the data."""

    name: str
    stored_shape: tuple[int, ...]
    type: QuantType
    relative_offset: int


def read_records(reader: BoundedReader, count: int) -> list[Record]:
    """The next `count` records in the order of the file.

    Raises CheckpointError naming the tensor: a name that is given twice, empty or not UTF-8,
    dimensions of zero or too many of them, or an unknown type; UnsupportedCheckpoint for a type
    that this package does not read.
    """
    records: list[Record] = []
    names: set[str] = set()
    for number in range(count):
        name = read_text(reader, MAX_NAME_BYTES, f"the name of tensor {number}")
        if not name:
            raise reader.error(f"the name of tensor {number} is empty")
        if name in names:
            raise reader.error(f"tensor {shown(name)} is stored twice")
        names.add(name)
        what = f"the record of tensor {shown(name)}"
        (dimensions,) = reader.unpack(_DIMENSION_COUNT, what)
        if dimensions not in _DIMENSIONS:
            raise reader.error(
                f"tensor {shown(name)} has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}"
            )
        shape = reader.unpack(_DIMENSIONS[dimensions], what)[::-1]
        type_id, offset = reader.unpack(_TYPE_AND_OFFSET, what)
        if 0 in shape:
            raise reader.error(f"tensor {shown(name)} has shape {list(shape)}, without elements")
        records.append(Record(name, shape, _quant_type(reader, name, type_id), offset))
    return records


def place_tensors(
    reader: BoundedReader,
    records: Sequence[Record],
    metadata: Mapping[str, Value],
    *,
    data_offset: int,
    alignment: int,
) -> tuple[TensorInfo, ...]:
    """The tensors that the records describe, in their order, checked against the file.

    Raises CheckpointError naming the tensor: rows that are no whole blocks, an own shape that does
    not fit, data that are not aligned, reach past the end of the file or overlap other data.
    """
    tensors = []
    for name, stored_shape, type_, relative_offset in records:
        elements_per_block, bytes_per_block = BLOCK[type_]
        if stored_shape[-1] % elements_per_block:
            raise reader.error(
                f"tensor {shown(name)} of type {type_.name} has rows of {stored_shape[-1]} "
                f"elements, expected a multiple of {elements_per_block}"
            )
        elements = math.prod(stored_shape)
        nbytes = elements // elements_per_block * bytes_per_block
        if relative_offset % alignment:
            raise reader.error(
                f"tensor {shown(name)} begins at offset {relative_offset} of the data, "
                f"expected a multiple of {alignment}"
            )
        offset = data_offset + relative_offset
        if offset + nbytes > reader.file_size:
            raise reader.error(
                f"tensor {shown(name)} with shape {list(stored_shape)} takes {nbytes} bytes from "
                f"offset {offset} on, but the file ends after {reader.file_size} bytes"
            )
        shape = _own_shape(reader, name, metadata, elements) or stored_shape
        tensors.append(TensorInfo(name, shape, type_, offset, nbytes))
    _refuse_overlaps(reader, tensors)
    return tuple(tensors)


def _quant_type(reader: BoundedReader, name: str, type_id: int) -> QuantType:
    if type_id in _TYPES:
        return _TYPES[type_id]
    if type_id in UNSUPPORTED_TYPES:
        raise UnsupportedCheckpoint(
            f"{reader.where}: tensor {shown(name)} has type {UNSUPPORTED_TYPES[type_id]}, "
            f"expected one of {', '.join(member.name for member in QuantType)}"
        )
    raise reader.error(f"tensor {shown(name)} has type {type_id}, which ggml does not define")


def _own_shape(
    reader: BoundedReader, name: str, metadata: Mapping[str, Value], elements: int
) -> tuple[int, ...] | None:
    shape = metadata.get(SHAPE_KEY + name)
    if shape is None:
        return None
    if (
        not isinstance(shape, tuple)
        or not 1 <= len(shape) <= MAX_DIMENSIONS
        or not all(type(size) is int and size > 0 for size in shape)
        or math.prod(shape) != elements
    ):
        found = f"{shape.length} items" if isinstance(shape, ArrayInfo) else ascii(shape)[:100]
        raise reader.error(
            f"metadata {shown(SHAPE_KEY + name)} is {found}, "
            f"expected 1 to {MAX_DIMENSIONS} dimensions with {elements} elements in all"
        )
    return tuple(int(size) for size in shape)


def _refuse_overlaps(reader: BoundedReader, tensors: Sequence[TensorInfo]) -> None:
    ordered = sorted(tensors, key=lambda tensor: tensor.offset)
    for before, after in pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise reader.error(
                f"the data of tensors {shown(before.name)} and {shown(after.name)} overlap"
            )
