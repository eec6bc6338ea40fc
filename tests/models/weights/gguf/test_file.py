"""Mapped GGUF files: views of the file and no copies, for as long as anyone holds one."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from models.errors import CheckpointError
from models.weights.gguf.file import GgufFile
from models.weights.gguf.format import BLOCK, QuantType
from tests.models.weights.gguf.handmade import Q8_0, array_entry, file, record

SMAPS = Path("/proc/self/smaps")


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "linear.weight": rng.integers(0, 256, (4, 3 * 34), np.uint8),
        "linear.bias": rng.standard_normal(4, np.float32),
        "conv.weight": rng.standard_normal((2, 3, 1, 2, 2), np.float32),
    }


@pytest.fixture
def path(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    path = tmp_path / "f.gguf"
    writer = gguf.GGUFWriter(path, "wan")
    for name, array in arrays.items():
        raw = gguf.GGMLQuantizationType.Q8_0 if array.dtype == np.uint8 else None
        writer.add_tensor(name, array, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_raw_bytes_are_those_that_were_written(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with GgufFile.open(path) as opened:
        assert list(opened.tensors) == list(arrays)
        for name, array in arrays.items():
            raw = opened.raw(name)
            assert raw.dtype == torch.uint8
            assert raw.numpy().tobytes() == array.tobytes()


def test_numbers_can_be_viewed_in_place(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with GgufFile.open(path) as opened:
        raw = opened.raw("conv.weight")
        view = raw.view(torch.float32).view(opened.tensors["conv.weight"].shape)
        assert view.data_ptr() == raw.data_ptr()
        assert np.array_equal(view.numpy(), arrays["conv.weight"])


def test_all_tensors_are_views_of_one_map(path: Path) -> None:
    with GgufFile.open(path) as opened:
        first, *others = (opened.raw(name) for name in opened.tensors)
        for view in others:
            assert view.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        assert first.untyped_storage().nbytes() == path.stat().st_size


def test_a_packed_matrix_has_its_blocks_row_by_row(
    path: Path, arrays: dict[str, np.ndarray]
) -> None:
    with GgufFile.open(path) as opened:
        packed = opened.packed("linear.weight")
        assert packed.type is QuantType.Q8_0
        assert packed.shape == (4, 3 * BLOCK[QuantType.Q8_0][0])
        assert np.array_equal(packed.data.numpy(), arrays["linear.weight"])
        assert packed.data.data_ptr() == opened.raw("linear.weight").data_ptr()


def test_only_matrices_of_whole_blocks_are_packed(path: Path, tmp_path: Path) -> None:
    with GgufFile.open(path) as opened, pytest.raises(CheckpointError, match="expected a matrix"):
        opened.packed("conv.weight")
    reshaped = array_entry("comfy.gguf.orig_shape.w", 0, 2, b"\x04\x10")
    other = tmp_path / "reshaped.gguf"
    other.write_bytes(file([record("w", (2, 32), Q8_0)], [reshaped]))
    with (
        GgufFile.open(other) as opened,
        pytest.raises(CheckpointError, match=r"shape \[4, 16\], expected .* blocks of 32"),
    ):
        opened.packed("w")


def test_views_stay_sound_after_closing(path: Path, arrays: dict[str, np.ndarray]) -> None:
    opened = GgufFile.open(path)
    view = opened.raw("linear.bias")
    opened.close()
    path.unlink()
    assert view.numpy().tobytes() == arrays["linear.bias"].tobytes()
    with pytest.raises(ValueError, match="is closed"):
        opened.raw("linear.bias")
    opened.close()


def test_an_unknown_tensor_is_named(path: Path) -> None:
    with GgufFile.open(path) as opened, pytest.raises(CheckpointError, match="no tensor 'head'"):
        opened.raw("head")


def test_a_damaged_file_is_refused_before_it_is_mapped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr("mmap.mmap", None)
    with pytest.raises(CheckpointError, match="but the file ends after"):
        GgufFile.open(path)


def test_a_file_that_shrinks_before_it_is_mapped_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fstat_of_before(descriptor: int) -> object:
        class Result:
            st_size = 1 << 30

        return Result

    monkeypatch.setattr("models.weights.gguf.header.os.fstat", fstat_of_before)
    with pytest.raises(CheckpointError, match="cannot be mapped"):
        GgufFile.open(path)


@pytest.mark.skipif(not SMAPS.exists(), reason="reads the maps of this process from /proc")
def test_opening_touches_no_page_of_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    path.write_bytes(file([record("w", (1 << 16, 4096))], data=b""))
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size + (1 << 30))
    with GgufFile.open(path) as opened:
        assert opened.raw("w").shape == (1 << 30,)
        assert resident_kilobytes(path) == 0
        assert int(opened.raw("w")[1 << 29]) == 0
        assert 0 < resident_kilobytes(path) < 10_000


def resident_kilobytes(path: Path) -> int:
    """How much of the file this process has touched through a map, read-ahead included."""
    _, _, rest = SMAPS.read_text().partition(str(path))
    match = re.search(r"^Rss: +(\d+) kB$", rest, re.MULTILINE)
    assert match, "not mapped"
    return int(match[1])
