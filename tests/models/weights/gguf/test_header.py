"""GGUF headers: read as the reference reads them, refused in one line when anything is wrong."""

from __future__ import annotations

import os
import re
import struct
import tracemalloc
from io import BytesIO
from pathlib import Path

import gguf
import numpy as np
import pytest

from bench.fuzz_gguf import valid_files
from models.errors import CheckpointError, UnsupportedCheckpoint
from models.weights.gguf import header as header_module
from models.weights.gguf.bounded_reader import MAX_HEADER_BYTES
from models.weights.gguf.format import BLOCK, UNSUPPORTED_TYPES, QuantType, ValueType
from models.weights.gguf.header import GgufHeader, open_header, read_header
from models.weights.gguf.metadata import LONGEST_KEPT_ARRAY, MAX_TEXT_BYTES, ArrayInfo
from tests.models.weights.gguf.handmade import (
    BOOL,
    F32,
    FLOAT32,
    Q8_0,
    STRING,
    UINT8,
    UINT32,
    array_entry,
    entry,
    file,
    record,
    string,
    text_entry,
)


def read(data: bytes) -> GgufHeader:
    return read_header(BytesIO(data), len(data), where="f.gguf")


def test_constants_are_those_of_the_reference() -> None:
    reference = gguf.GGMLQuantizationType
    for type_ in QuantType:
        assert reference[type_.name] == type_
        assert gguf.GGML_QUANT_SIZES[reference(type_)] == BLOCK[type_]
    for type_id, name in UNSUPPORTED_TYPES.items():
        assert reference[name] == type_id
    assert {value.name: int(value) for value in gguf.GGUFValueType} == {
        value.name: int(value) for value in ValueType
    }


def test_a_header_says_what_the_reference_reads_in_it(tmp_path: Path) -> None:
    for data in valid_files(tmp_path):
        path = tmp_path / "f.gguf"
        path.write_bytes(data)
        reference = gguf.GGUFReader(path)
        header = read(data)
        assert header.data_offset == reference.data_offset
        assert header.alignment == reference.alignment
        own = [field for name, field in reference.fields.items() if not name.startswith("GGUF.")]
        assert [field.name for field in own] == list(header.metadata)
        for field in own:
            value, expected = header.metadata[field.name], field.contents()
            if isinstance(value, ArrayInfo):
                assert value.length == len(expected)
                assert value.item_type == field.types[1]
            elif isinstance(value, tuple):
                assert list(value) == expected
            else:
                assert value == expected
        assert len(header.tensors) == len(reference.tensors)
        for info, tensor in zip(header.tensors, reference.tensors, strict=True):
            assert info.name == tensor.name
            assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)
            assert info.type == tensor.tensor_type
            if f"comfy.gguf.orig_shape.{info.name}" not in header.metadata:
                assert list(info.shape) == tensor.shape.tolist()[::-1]


def test_version_2_is_read_like_version_3() -> None:
    assert read(file([record("w")], version=2)).tensors == read(file([record("w")])).tensors


def test_a_tensor_stored_in_another_shape_gets_its_own_back() -> None:
    shape = array_entry("comfy.gguf.orig_shape.w", 5, 3, struct.pack("<3i", 2, 4, 8))
    [info] = read(file([record("w", (2, 32), Q8_0)], [shape])).tensors
    assert info.shape == (2, 4, 8)
    assert info.nbytes == 2 * 34


def test_short_arrays_are_read_and_long_ones_described() -> None:
    short = array_entry("short", UINT8, LONGEST_KEPT_ARRAY, bytes(range(LONGEST_KEPT_ARRAY)))
    long = array_entry("long", FLOAT32, 100, bytes(400))
    texts = array_entry("texts", STRING, 3, string("a") + string("") + string(b"\xff"))
    data = file([record("w")], [short, long, texts, text_entry("after", "end")])
    metadata = read(data).metadata
    assert metadata["short"] == tuple(range(LONGEST_KEPT_ARRAY))
    assert metadata["after"] == "end"
    for key, item_type, length in (
        ("long", ValueType.FLOAT32, 100),
        ("texts", ValueType.STRING, 3),
    ):
        info = metadata[key]
        assert isinstance(info, ArrayInfo)
        assert (info.item_type, info.length) == (item_type, length)
    assert data[metadata["texts"].offset :].startswith(string("a"))


def test_a_vocabulary_larger_than_the_window_is_passed_over() -> None:
    # Long strings too, so that some of them end beyond what was read.
    words = b"".join(string(b"x" * (index % 7 + 300_000 * (index % 9000 == 0)))
                     for index in range(40_000))  # fmt: skip
    vocabulary = array_entry("tokens", STRING, 40_000, words)
    data = file([record("w")], [vocabulary, text_entry("after", "end")])
    tracemalloc.start()
    header = read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert header.metadata["after"] == "end"
    assert [info.name for info in header.tensors] == ["w"]
    assert peak < len(data) / 2


def test_the_architecture_is_a_text_or_unknown() -> None:
    assert read(file(metadata=[text_entry("general.architecture", "wan")])).architecture == "wan"
    number = entry("general.architecture", UINT32, struct.pack("<I", 3))
    assert read(file(metadata=[number])).architecture is None


HEAD = b"GGUF" + struct.pack("<I", 3)
ALIGNED = "general.alignment"
FOREIGN = {
    "empty file": b"",
    "zero bytes": bytes(100),
    "safetensors": struct.pack("<Q", 40) + b'{"w": {"dtype": "F32"}}',
    "zip archive": b"PK\x03\x04" + bytes(60),
    "Python pickle": b"\x80\x02}q\x00",
    "web page": b"\n<!DOCTYPE html><html>",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1234",
    "JSON document": b'{"error": "login required"}',
    "GGML": b"lmgg" + bytes(60),
    "GGJT": b"tjgg" + bytes(60),
    r"beginning with b'\xff\xd8\xff\xe0'": b"\xff\xd8\xff\xe0" + bytes(60),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_kind_of_file_is_named(kind: str) -> None:
    message = rf"f\.gguf: expected a GGUF file, found .*{re.escape(kind)}"
    with pytest.raises(CheckpointError, match=message):
        read(FOREIGN[kind])


def alignment(value: int) -> bytes:
    return entry(ALIGNED, UINT32, struct.pack("<I", value))


REFUSED: dict[str, tuple[bytes, str]] = {
    "truncated in the counts": (HEAD + bytes(9), "would end at byte 24, but the file ends after"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1, expected 2 or 3"),
    "version 4": (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "GGUF version 4, expected 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensor count": (
        HEAD + struct.pack("<QQ", 2**63, 0),
        "header of 9223372036854775808 tensors would end",
    ),
    "metadata count": (
        HEAD + struct.pack("<QQ", 0, 2**64 - 1),
        "18446744073709551615 metadata entries would end",
    ),
    "key past the end": (
        HEAD + struct.pack("<QQQ", 0, 1, 2**63) + bytes(99),
        "key of metadata entry 0 would end",
    ),
    "key too long": (
        file(metadata=[text_entry("k" * 65_536, "v")]),
        "key of metadata entry 0 is 65536 bytes long, expected at most 65535",
    ),
    "key twice": (file(metadata=[text_entry("k", "v")] * 2), "metadata 'k' is given twice"),
    "key not text": (file(metadata=[entry(b"\xff", UINT8, b"\0")]), "entry 0 is not UTF-8"),
    "value not text": (file(metadata=[entry("k", STRING, string(b"\xc0"))]), "'k' is not UTF-8"),
    "value type": (file(metadata=[entry("k", 13, bytes(8))]), "'k' has unknown type 13, expected"),
    "flag": (file(metadata=[entry("k", BOOL, b"\2")]), "flag of value 2, expected 0 or 1"),
    "array of arrays": (file(metadata=[array_entry("k", 9, 1, bytes(12))]), "array of arrays"),
    "array past the end": (
        file(metadata=[array_entry("k", UINT8, 2**40, b"")]),
        "metadata 'k' would end at byte",
    ),
    "array of texts past the end": (
        file(metadata=[array_entry("k", STRING, 2**61, b"")]),
        "metadata 'k' would end at byte",
    ),
    "one text of an array past the end": (
        file(metadata=[array_entry("k", STRING, 2, string("a") + struct.pack("<Q", 2**64 - 1))]),
        "metadata 'k' would end at byte",
    ),
    "alignment 0": (file(metadata=[alignment(0)]), "is 0, expected a power of two from 8"),
    "alignment 48": (file(metadata=[alignment(48)]), "is 48, expected a power of two from 8"),
    "alignment 2 GB": (file(metadata=[alignment(1 << 31)]), "expected a power of two from 8"),
    "alignment text": (file(metadata=[text_entry(ALIGNED, "32")]), "is '32', expected a power"),
    "name twice": (
        file([record("w"), record("w", offset=32)]),
        "tensor 'w' is stored twice",
    ),
    "name not text": (file([record(b"\x80w")]), "name of tensor 0 is not UTF-8"),
    "name empty": (file([record("")]), "name of tensor 0 is empty"),
    "name too long": (file([record("n" * 600)]), "is 600 bytes long, expected at most 512"),
    "no dimensions": (file([record("w", ())]), "has 0 dimensions, expected 1 to 5"),
    "six dimensions": (file([record("w", (1,) * 6)]), "has 6 dimensions, expected 1 to 5"),
    "dimension zero": (file([record("w", (4, 0))]), r"shape \[4, 0\], without elements"),
    "product beyond 64 bits": (
        file([record("w", (2**32, 2**32, 2))]),
        f"takes {2**67} bytes from offset 96 on, but the file ends after",
    ),
    "unknown type": (file([record("w", type_=5)]), "has type 5, which ggml does not define"),
    "unsupported type": (
        file([record("w", (256,), 16)]),
        "'w' has type IQ2_XXS, expected one of F32, F16,",
    ),
    "broken blocks": (
        file([record("w", (2, 48), Q8_0)]),
        "type Q8_0 has rows of 48 elements, expected a multiple of 32",
    ),
    "offset not aligned": (file([record("w", offset=8)]), "offset 8 of the data, expected a mult"),
    "offset past the end": (file([record("w", offset=256)]), "takes 32 bytes from offset"),
    "offset beyond 64 bits": (file([record("w", offset=2**64 - 32)]), "but the file ends after"),
    "truncated data": (file([record("w")], data=bytes(31)), "'w' .* takes 32 bytes from offset"),
    "overlap": (
        file([record("v", (16,), F32, 32), record("u", (9,))]),
        "data of tensors 'u' and 'v' overlap",
    ),
    "record past the end": (
        (HEAD + struct.pack("<QQ", 1, 0) + record("long name")[:-4]),
        "record of tensor 'long name' would end",
    ),
    "shape of other size": (
        file([record("w")], [array_entry("comfy.gguf.orig_shape.w", UINT8, 2, b"\2\2")]),
        r"orig_shape.w' is \(2, 2\), expected 1 to 5 dimensions with 8 elements",
    ),
    "shape is a text": (
        file([record("w")], [text_entry("comfy.gguf.orig_shape.w", "8")]),
        "orig_shape.w' is '8', expected",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_damaged_file_is_refused_in_one_line(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        read(data)
    assert str(caught.value).startswith("f.gguf: ")
    assert str(caught.value).isprintable()


def test_sound_files_that_are_not_read_are_told_from_damaged_ones() -> None:
    for case in ("version 1", "version 4", "big-endian", "unsupported type"):
        with pytest.raises(UnsupportedCheckpoint):
            read(REFUSED[case][0])


@pytest.mark.parametrize("noun", ["tensors", "metadata entries"])
def test_more_entries_than_any_model_has_are_refused(noun: str) -> None:
    most = {
        "tensors": header_module.MAX_TENSORS,
        "metadata entries": header_module.MAX_METADATA,
    }[noun]
    counts = (most + 1, 0) if noun == "tensors" else (0, most + 1)
    data = HEAD + struct.pack("<QQ", *counts) + bytes(100 * most)
    with pytest.raises(CheckpointError, match=f"counts {most + 1} {noun}, expected at most"):
        read(data)


def test_more_text_than_any_model_has_is_refused() -> None:
    half = "t" * (MAX_TEXT_BYTES // 2)
    data = file(metadata=[text_entry("a", half), text_entry("b", half)])
    with pytest.raises(CheckpointError, match=r"metadata 'b' is \d+ bytes long, expected at most"):
        read(data)


def test_a_header_beyond_the_limit_is_refused_without_being_walked() -> None:
    count = MAX_HEADER_BYTES // 8
    data = array_entry("k", STRING, count, b"")
    head = HEAD + struct.pack("<QQ", 0, 1) + data

    class Handle(BytesIO):
        bytes_read = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.bytes_read += len(data)
            return data

    handle = Handle(head + bytes(1 << 20))
    with pytest.raises(CheckpointError, match="'k' reaches past the 33554432 bytes allowed"):
        read_header(handle, 10 * MAX_HEADER_BYTES, where="f.gguf")
    assert handle.bytes_read < 1 << 20


def test_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    data = file([record("w")], [text_entry("k", "v" * 300_000)])
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        read_header(BytesIO(data[:200_000]), len(data), where="f.gguf")


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("none.gguf", "no such file"),
        (".", "is a folder, expected a GGUF file"),
        ("pipe", "not a regular file"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_header(tmp_path / name)


def test_names_from_the_file_cannot_reach_the_terminal_raw() -> None:
    with pytest.raises(CheckpointError) as caught:
        read(file([record("\x1b[2J\nw\u202e" * 20, (2, 0))]))
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()


def test_blocks_of_every_type_take_the_bytes_that_the_reference_writes(tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    writer = gguf.GGUFWriter(path, "wan")
    for type_ in QuantType:
        data = np.zeros((3, 2 * BLOCK[type_][1]), np.uint8)
        writer.add_tensor(type_.name, data, raw_dtype=gguf.GGMLQuantizationType(type_))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for info in open_header(path).tensors:
        elements, nbytes = BLOCK[QuantType[info.name]]
        assert info.type is QuantType[info.name]
        assert info.shape == (3, 2 * elements)
        assert info.nbytes == 6 * nbytes
