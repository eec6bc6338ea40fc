"""Files that `write_gguf` makes, as gguf's own reader and ours see them."""

from __future__ import annotations

import weakref

import gguf
import numpy as np
import pytest
import torch

from models.errors import CheckpointError
from models.weights.gguf.dequantize import dequantize
from models.weights.gguf.file import GgufFile
from models.weights.gguf.file_type import FileType
from models.weights.gguf.format import QuantType
from models.weights.gguf.quantize import quantize
from models.weights.gguf.writer import PlannedTensor, write_gguf

PLAN = [
    PlannedTensor("blocks.0.ffn.0.weight", (6, 512), QuantType.Q4_K),
    PlannedTensor("blocks.0.ffn.0.bias", (6,), QuantType.F32),
    PlannedTensor("patch_embedding.weight", (8, 3, 1, 2, 2), QuantType.F32),
    PlannedTensor("blocks.0.modulation", (1, 6, 5), QuantType.F32),
    PlannedTensor("blocks.0.ffn.2.weight", (3, 96), QuantType.Q5_1),
    PlannedTensor("head.head.weight", (3, 40), QuantType.BF16),
]


def numbers(tensor: PlannedTensor) -> torch.Tensor:
    random = torch.Generator().manual_seed(len(tensor.name))
    return torch.randn(tensor.shape, generator=random)


def write(path, plan=PLAN, blocks=None):
    if blocks is None:
        blocks = (quantize(numbers(tensor), tensor.type) for tensor in plan)
    write_gguf(path, plan, blocks, architecture="wan", file_type=FileType.Q4_K_M)


def test_gguf_reader_finds_names_true_shapes_types_and_numbers(tmp_path):
    write(tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert reader.get_field("general.architecture").contents() == "wan"
    assert reader.get_field("general.file_type").contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert [tensor.name for tensor in reader.tensors] == [tensor.name for tensor in PLAN]
    for planned, found in zip(PLAN, reader.tensors, strict=True):
        assert tuple(map(int, reversed(found.shape))) == planned.shape
        assert int(found.tensor_type) == planned.type
        expected = gguf.quants.dequantize(
            quantize(numbers(planned), planned.type).numpy(), found.tensor_type
        )
        values = gguf.quants.dequantize(found.data, found.tensor_type)
        np.testing.assert_array_equal(
            values.reshape(planned.shape), expected.reshape(planned.shape)
        )
        assert found.data_offset % 32 == 0


def test_our_reader_finds_the_same(tmp_path):
    write(tmp_path / "a.gguf")
    with GgufFile.open(tmp_path / "a.gguf") as file:
        assert file.header.architecture == "wan"
        assert [info.name for info in file.tensors.values()] == [tensor.name for tensor in PLAN]
        for planned in PLAN:
            assert file.tensors[planned.name].shape == planned.shape
            found = dequantize(file.raw(planned.name), planned.type)
            expected = dequantize(quantize(numbers(planned), planned.type), planned.type)
            assert torch.equal(found, expected.flatten())


def test_blocks_written_are_let_go(tmp_path):
    given = []

    def blocks():
        for tensor in PLAN:
            # The one before may still be in the writer's hands.
            assert not any(reference() is not None for reference in given[:-1])
            data = torch.zeros(tensor.nbytes, dtype=torch.uint8)
            given.append(weakref.ref(data))
            yield data
            del data

    write(tmp_path / "a.gguf", blocks=blocks())
    assert len(given) == len(PLAN)


def test_a_failure_half_way_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")

    def blocks():
        yield quantize(numbers(PLAN[0]), PLAN[0].type)
        raise RuntimeError("the source is broken")

    with pytest.raises(RuntimeError, match="the source is broken"):
        write(path, blocks=blocks())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_blocks_that_do_not_fit_the_plan_are_refused(tmp_path):
    path = tmp_path / "a.gguf"
    with pytest.raises(ValueError, match=r"'blocks\.0\.ffn\.0\.weight' has 4 bytes, planned 1728"):
        write(path, blocks=[torch.zeros(4, dtype=torch.uint8)])
    with pytest.raises(ValueError, match="no rows of whole Q4_K blocks of 256"):
        write(path, plan=[PlannedTensor("a", (2, 255), QuantType.Q4_K)])
    with pytest.raises(ValueError, match="shorter"):
        write(path, blocks=[])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere/a\.gguf: cannot be written: No such file"):
        write(tmp_path / "nowhere" / "a.gguf")


def test_a_file_too_large_for_the_disk_is_refused_before_it_is_begun(tmp_path):
    plan = [PlannedTensor("a", (10**9, 10**9), QuantType.F32)]
    with pytest.raises(CheckpointError, match=r"takes 4000000000\.00 GB, .* GB are free"):
        write(tmp_path / "a.gguf", plan=plan, blocks=[])
    assert not list(tmp_path.iterdir())
