"""The metadata of a GGUF file: typed key and value pairs, read through a `BoundedReader`.

Numbers, flags, texts and short arrays of numbers become Python values. Long arrays and arrays of
strings, such as a tokenizer's vocabulary, are passed over and described by an `ArrayInfo`.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from models.weights.gguf.bounded_reader import BoundedReader
from models.weights.gguf.format import ValueType

LONGEST_KEPT_ARRAY = 16
MAX_KEY_BYTES = 65_535
"""The limit that the format sets itself."""
MAX_TEXT_BYTES = 1 << 20
"""Of all keys and texts together; a chat template takes 20 KB, a whole licence 35 KB."""

_COUNT = Struct("<Q")
_TYPE = Struct("<I")
_ARRAY = Struct("<IQ")
_NUMBERS = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "B",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
_LEAST_STRING_BYTES = 8
_TYPE_NAMES = {int(member): member for member in ValueType}
_SHOWN_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """An array that was passed over: `length` items of `item_type` from byte `offset` on."""

    item_type: ValueType
    length: int
    offset: int


Value = bool | int | float | str | tuple[bool | int | float, ...] | ArrayInfo


def read_metadata(reader: BoundedReader, count: int) -> dict[str, Value]:
    """The next `count` entries in the order of the file.

    Raises CheckpointError naming the entry: duplicate, not UTF-8, of an unknown type, an array of
    arrays, longer than the file, or more text in all than any model needs.
    """
    metadata: dict[str, Value] = {}
    text_left = MAX_TEXT_BYTES
    for number in range(count):
        before = reader.offset
        key = read_text(reader, MAX_KEY_BYTES, f"the key of metadata entry {number}")
        what = f"metadata {shown(key)}"
        if key in metadata:
            raise reader.error(f"{what} is given twice")
        value = _read_value(reader, text_left, what)
        text_left -= reader.offset - before if isinstance(value, str) else len(key)
        if text_left < 0:
            raise reader.error(f"the metadata hold more than {MAX_TEXT_BYTES} bytes of text")
        metadata[key] = value
    return metadata


def read_text(reader: BoundedReader, most: int, what: str) -> str:
    """The next string, of at most `most` bytes.

    Raises CheckpointError naming `what` when it is longer, past the end, or not UTF-8.
    """
    (length,) = reader.unpack(_COUNT, f"the length of {what}")
    if length > most:
        reader.require(length, what)
        raise reader.error(f"{what} is {length} bytes long, expected at most {most}")
    try:
        return reader.take(length, what).decode("utf-8")
    except UnicodeDecodeError:
        raise reader.error(f"{what} is not UTF-8 text") from None


def shown(name: str) -> str:
    """A name from an untrusted file for an error message: quoted, on one line, not too long."""
    quoted = ascii(name)
    return quoted if len(quoted) <= _SHOWN_CHARACTERS else f"{quoted[:_SHOWN_CHARACTERS]}...'"


def _read_value(reader: BoundedReader, most_text: int, what: str) -> Value:
    (type_id,) = reader.unpack(_TYPE, f"the type of {what}")
    value_type = _value_type(reader, type_id, what)
    if value_type is ValueType.STRING:
        return read_text(reader, most_text, what)
    if value_type is ValueType.ARRAY:
        return _read_array(reader, what)
    return _read_numbers(reader, value_type, 1, what)[0]


def _read_array(reader: BoundedReader, what: str) -> Value:
    type_id, length = reader.unpack(_ARRAY, f"the head of {what}")
    item_type = _value_type(reader, type_id, what)
    if item_type is ValueType.ARRAY:
        raise reader.error(f"{what} is an array of arrays, which no model file needs")
    info = ArrayInfo(item_type, length, reader.offset)
    if item_type is ValueType.STRING:
        reader.require(length * _LEAST_STRING_BYTES, what)
        reader.skip_strings(length, what)
        return info
    if length <= LONGEST_KEPT_ARRAY:
        return _read_numbers(reader, item_type, length, what)
    reader.skip(length * Struct(f"<{_NUMBERS[item_type]}").size, what)
    return info


def _read_numbers(
    reader: BoundedReader, value_type: ValueType, count: int, what: str
) -> tuple[bool | int | float, ...]:
    values = reader.unpack(Struct(f"<{count}{_NUMBERS[value_type]}"), what)
    if value_type is ValueType.BOOL:
        if any(value > 1 for value in values):
            raise reader.error(f"{what} is a flag of value {max(values)}, expected 0 or 1")
        return tuple(map(bool, values))
    return values


def _value_type(reader: BoundedReader, type_id: int, what: str) -> ValueType:
    if type_id not in _TYPE_NAMES:
        raise reader.error(f"{what} has unknown type {type_id}, expected 0 to {max(_TYPE_NAMES)}")
    return _TYPE_NAMES[type_id]
