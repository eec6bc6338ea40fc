"""`quantize`: plain types against `gguf.quants`, what is refused, and that pieces do not show."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from models.weights.gguf.dequantize import dequantize
from models.weights.gguf.format import BLOCK, QuantType
from models.weights.gguf.quantize import QuantizationError, quantize

REFERENCED = [
    QuantType.F32,
    QuantType.F16,
    QuantType.BF16,
    QuantType.Q8_0,
    QuantType.Q4_0,
    QuantType.Q4_1,
    QuantType.Q5_0,
    QuantType.Q5_1,
]
K_TYPES = [QuantType.Q2_K, QuantType.Q3_K, QuantType.Q4_K, QuantType.Q5_K, QuantType.Q6_K]
WRITTEN = REFERENCED + K_TYPES


def awkward_rows() -> np.ndarray:
    """float32 [rows, 512]: weights of several spreads, and rows made to break things."""
    random = np.random.default_rng(0)
    ordinary = random.normal(size=(24, 512)) * 10.0 ** random.uniform(-4, 2, (24, 1))
    rows = [
        *ordinary,
        np.zeros(512),
        np.full(512, 0.25),
        np.full(512, -3.0),
        random.uniform(1, 2, 512),
        random.uniform(-2, -1, 512),
        np.where(np.arange(512) % 37 == 0, 40.0, 0.01 * random.normal(size=512)),
        # Numbers halfway between two levels, and ties for the largest in magnitude.
        np.tile([1.0, -1.0, 0.5, -0.5], 128),
        random.normal(size=512) * 1e-7,
        random.normal(size=512) * 1e4,
    ]
    return np.array(rows, np.float32)


@pytest.mark.parametrize("type", REFERENCED, ids=lambda type: type.name)
def test_plain_types_equal_the_numpy_reference_bit_for_bit(type):
    rows = awkward_rows()
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType(int(type)))
    found = quantize(torch.from_numpy(rows), type).numpy()
    np.testing.assert_array_equal(found, expected.view(np.uint8))


@pytest.mark.parametrize("type", WRITTEN, ids=lambda type: type.name)
def test_the_numpy_reference_reads_what_was_written_as_we_do(type):
    blocks = quantize(torch.from_numpy(awkward_rows()), type)
    elements, size = BLOCK[type]
    assert blocks.shape == (len(awkward_rows()), 512 // elements * size)
    expected = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType(int(type)))
    np.testing.assert_array_equal(dequantize(blocks, type).numpy(), expected)


@pytest.mark.parametrize("type", [QuantType.Q8_0, *K_TYPES], ids=lambda type: type.name)
def test_work_in_pieces_and_leading_dimensions_change_nothing(type, monkeypatch):
    rows = torch.from_numpy(awkward_rows())[:32]
    whole = quantize(rows, type)
    monkeypatch.setattr("models.weights.gguf.quantize._PIECE", 3 * 256)
    assert torch.equal(quantize(rows.view(4, 8, 512), type).view_as(whole), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_are_read_as_the_float32_they_stand_for(dtype):
    rows = torch.from_numpy(awkward_rows())[:24].to(dtype)
    assert torch.equal(quantize(rows, QuantType.Q4_K), quantize(rows.float(), QuantType.Q4_K))


def test_eight_bit_floats_are_read():
    rows = torch.randn(2, 256, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    assert torch.equal(quantize(rows, QuantType.Q8_0), quantize(rows.float(), QuantType.Q8_0))


@pytest.mark.parametrize("type", [QuantType.IQ4_NL, QuantType.IQ4_XS], ids=lambda type: type.name)
def test_types_that_are_only_read_are_refused(type):
    with pytest.raises(QuantizationError, match=f"{type.name} can be read but not written"):
        quantize(torch.zeros(1, 256), type)


def test_rows_that_make_no_whole_blocks_are_refused():
    with pytest.raises(
        QuantizationError, match=r"Q4_K needs rows of a multiple of 256 .* found 96"
    ):
        quantize(torch.zeros(2, 96), QuantType.Q4_K)
    with pytest.raises(QuantizationError, match="Q8_0 needs rows of floating-point numbers"):
        quantize(torch.zeros(2, 96, dtype=torch.int32), QuantType.Q8_0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -7e4])
@pytest.mark.parametrize("type", [QuantType.F16, QuantType.Q8_0, QuantType.Q6_K])
def test_values_that_half_precision_cannot_hold_are_refused(type, value):
    rows = torch.zeros(2, 256)
    rows[1, 77] = value
    with pytest.raises(QuantizationError, match="holds finite numbers up to 65504"):
        quantize(rows, type)
    assert quantize(rows, QuantType.F32).shape == (2, 1024)


def test_no_rows_give_no_blocks():
    assert quantize(torch.zeros(0, 256), QuantType.Q4_K).shape == (0, 144)
