"""Any bytes at all: a typed error of one line, or tensors that lie inside the file."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fuzz_gguf import (
    LOAD_EVERY,
    check,
    check_loading,
    fuzz,
    valid_files,
    whole_transformer,
)
from models.errors import CheckpointError
from models.wan.transformer import WanVaceTransformer
from models.weights.gguf.header import GgufHeader, read_header

NUMBERS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1, 8, 9, 31, 32, 2**31, 2**32 - 1, 2**61, 2**63, 2**64 - 1]),
)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from("BIQ"), NUMBERS), max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


with tempfile.TemporaryDirectory() as name:
    VALID = valid_files(Path(name))


@given(data=st.sampled_from(VALID), edits=EDITS, kept=st.floats(0.5, 1))
@settings(max_examples=300, deadline=None)
def test_numbers_set_anywhere_do_no_harm(
    folder: Path, data: bytes, edits: list[tuple[float, str, int]], kept: float
) -> None:
    damaged = bytearray(data)
    for place, layout, value in edits:
        size = struct.calcsize(layout)
        at = int(place * (len(damaged) - size))
        damaged[at : at + size] = struct.pack(f"<{layout}", value % 256**size)
    check(bytes(damaged[: round(kept * len(damaged))]), folder)


@given(rest=st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_behind_the_magic_do_no_harm(folder: Path, rest: bytes) -> None:
    check(b"GGUF" + struct.pack("<I", 3) + rest, folder)
    check(rest, folder)


def test_the_material_of_the_fuzzer_is_sound(folder: Path) -> None:
    for data in VALID:
        assert isinstance(check(data, folder), GgufHeader)


def test_the_fuzzer_finds_nothing_and_reaches_both_outcomes() -> None:
    seen = fuzz(500, seed=1)
    assert set(seen["outcomes"]) == {
        "loaded",
        "loaded as a transformer",
        "CheckpointError",
        "UnsupportedCheckpoint",
    }


def test_a_damaged_transformer_is_loaded_or_refused_by_name(folder: Path) -> None:
    whole = whole_transformer(folder)
    for residency in ("packed", "bf16"):
        assert isinstance(check_loading(whole, folder, residency), WanVaceTransformer)
        # Sound as a file, and no transformer any more.
        renamed = whole.replace(b"blocks.0.ffn.0.bias", b"blocks.0.fun.0.bias", 1)
        refused = check_loading(renamed, folder, residency)
        assert isinstance(refused, CheckpointError)
        assert "ffn.0.bias" in str(refused)


def test_the_fuzzer_notices_a_loader_that_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("shape is invalid for input of size 0")

    monkeypatch.setattr("bench.fuzz_gguf.check_loading", crash)
    with pytest.raises(RuntimeError):
        fuzz(LOAD_EVERY, seed=0)


def test_the_fuzzer_notices_a_reader_that_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*arguments: object, **keywords: object) -> None:
        raise struct.error("unpack_from requires a buffer")

    monkeypatch.setattr("bench.fuzz_gguf.read_header", crash)
    with pytest.raises(struct.error):
        fuzz(1, seed=0)


def test_the_fuzzer_notices_a_case_that_is_slow_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.fuzz_gguf.MOST_SECONDS", 0.0)
    with pytest.raises(AssertionError, match="case 0 of seed 0 takes"):
        fuzz(1, seed=0)


def test_the_fuzzer_notices_a_reader_that_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_wastefully(handle: BinaryIO, file_size: int, *, where: str) -> GgufHeader:
        bytes(1 << 20)
        return read_header(handle, file_size, where=where)

    monkeypatch.setattr("bench.fuzz_gguf.read_header", read_wastefully)
    with pytest.raises(AssertionError, match=r"case 0: \d+ bytes"):
        fuzz(1, seed=0)
