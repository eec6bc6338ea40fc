"""`dequantize` against numpy's `gguf.quants` on random blocks, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from models.weights.gguf.dequantize import dequantize
from models.weights.gguf.format import BLOCK, QuantType

# Byte offsets of the half-precision factors in a block.
FACTORS = {
    QuantType.Q4_0: (0,),
    QuantType.Q4_1: (0, 2),
    QuantType.Q5_0: (0,),
    QuantType.Q5_1: (0, 2),
    QuantType.Q8_0: (0,),
    QuantType.Q2_K: (80, 82),
    QuantType.Q3_K: (108,),
    QuantType.Q4_K: (0, 2),
    QuantType.Q5_K: (0, 2),
    QuantType.Q6_K: (208,),
    QuantType.IQ4_NL: (0,),
    QuantType.IQ4_XS: (0,),
}
# Zero of both signs, the smallest and largest denormal, smallest normal, largest, infinity, NaN.
SPECIAL_HALVES = (0x0000, 0x8000, 0x0001, 0x03FF, 0x8001, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00)
SPECIAL_HALVES += (0x7E00, 0xFE01, 0x3C00, 0xBC00)
ROWS, BLOCKS = 28, 3


def random_blocks(type: QuantType, seed: int = 0, *, special: bool = True) -> np.ndarray:
    """Rows of random bytes, uint8 [ROWS, bytes]; with `special`, half of the rows get such scales.

    Without it all scales are small normal numbers.
    """
    random = np.random.default_rng(seed)
    size = BLOCK[type][1]
    data = random.integers(0, 256, (ROWS, BLOCKS, size), dtype=np.uint8)
    for offset in FACTORS.get(type, ()):
        halves = random.uniform(-2, 2, (ROWS, BLOCKS)).astype(np.float16).view(np.uint16)
        if special:
            rows = ROWS // 2
            halves[:rows] = random.choice(np.array(SPECIAL_HALVES, np.uint16), (rows, BLOCKS))
        data[..., offset : offset + 2] = halves[..., None].view(np.uint8)
    return data.reshape(ROWS, -1)


def reference(data: np.ndarray, type: QuantType) -> np.ndarray:
    """What numpy's implementation makes of `data`: float32."""
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType(int(type)))


def bits(values: np.ndarray) -> np.ndarray:
    """Bit patterns, with one pattern for every NaN."""
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32)


@pytest.mark.parametrize("type", QuantType, ids=lambda type: type.name)
def test_float32_result_equals_the_numpy_reference_bit_for_bit(type):
    for seed in range(3):
        data = random_blocks(type, seed)
        expected = reference(data, type)
        found = dequantize(torch.from_numpy(data), type).numpy()
        assert found.shape == expected.shape
        np.testing.assert_array_equal(bits(found), bits(expected))


@pytest.mark.parametrize("type", FACTORS, ids=lambda type: type.name)
def test_wholly_random_bytes_equal_the_reference_too(type):
    data = np.random.default_rng(7).integers(0, 256, (64, BLOCK[type][1]), dtype=np.uint8)
    found = dequantize(torch.from_numpy(data), type).numpy()
    np.testing.assert_array_equal(bits(found), bits(reference(data, type)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("type", QuantType, ids=lambda type: type.name)
def test_other_dtypes_are_the_float32_result_rounded_once(type, dtype):
    data = torch.from_numpy(random_blocks(type))
    expected = dequantize(data, type).to(dtype)
    torch.testing.assert_close(
        dequantize(data, type, dtype=dtype), expected, rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("type", [QuantType.Q8_0, QuantType.Q4_K], ids=lambda type: type.name)
def test_work_in_pieces_changes_nothing(type, monkeypatch):
    data = torch.from_numpy(random_blocks(type, special=False))
    whole = dequantize(data, type, dtype=torch.bfloat16)
    exact = dequantize(data, type)
    # 5 blocks a piece: the last piece is shorter, and pieces end inside rows.
    monkeypatch.setattr("models.weights.gguf.dequantize._PIECE", 5 * BLOCK[type][0])
    assert torch.equal(dequantize(data, type, dtype=torch.bfloat16), whole)
    assert torch.equal(dequantize(data, type), exact)


@pytest.mark.parametrize("type", QuantType, ids=lambda type: type.name)
def test_result_is_written_into_out_and_the_blocks_stay_untouched(type):
    data = torch.from_numpy(random_blocks(type, special=False))
    before = data.clone()
    expected = dequantize(data, type, dtype=torch.bfloat16)
    out = torch.full_like(expected, 3.0)
    assert dequantize(data, type, out=out) is out
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(data, before)


@pytest.mark.parametrize("type", QuantType, ids=lambda type: type.name)
def test_blocks_at_odd_addresses_and_in_strided_rows_give_the_same(type):
    data = torch.from_numpy(random_blocks(type, special=False))
    expected = dequantize(data, type)
    shifted = torch.empty(data.numel() + 1, dtype=torch.uint8)[1:].view(data.shape).copy_(data)
    wide = torch.cat([data, data], dim=1)[:, : data.shape[1]]
    for variant in (shifted, wide):
        torch.testing.assert_close(
            dequantize(variant, type), expected, rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("type", QuantType, ids=lambda type: type.name)
def test_one_block_of_a_wide_row_gives_the_same(type):
    data = torch.from_numpy(random_blocks(type, special=False))
    size = BLOCK[type][1]
    expected = dequantize(data, type)[:1, : BLOCK[type][0]]
    # Of one row torch calls any stride contiguous, also one that wider numbers do not fit.
    wide = torch.cat([data, data[:, :1]], dim=1)[:1, :size]
    torch.testing.assert_close(dequantize(wide, type), expected, rtol=0, atol=0, equal_nan=True)


def test_leading_dimensions_are_kept():
    data = torch.from_numpy(random_blocks(QuantType.Q8_0, special=False))
    stacked = data.view(4, 7, -1)
    assert dequantize(stacked, QuantType.Q8_0).shape == (4, 7, 96)
    assert dequantize(data[0], QuantType.Q8_0).shape == (96,)
    assert dequantize(data[:0], QuantType.Q8_0, dtype=torch.bfloat16).shape == (0, 96)


def test_tables_made_in_inference_mode_serve_outside_it():
    for type in (QuantType.Q5_0, QuantType.IQ4_NL):
        data = torch.from_numpy(random_blocks(type, special=False))
        with torch.inference_mode():
            inside = dequantize(data, type)
        assert torch.equal(dequantize(data, type), inside)


def test_bytes_that_make_no_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="Q4_K blocks take 144 bytes: rows of 143 bytes"):
        dequantize(torch.zeros(2, 143, dtype=torch.uint8), QuantType.Q4_K)
    with pytest.raises(ValueError, match="must be uint8"):
        dequantize(torch.zeros(2, 144), QuantType.Q4_K)


def test_an_out_that_does_not_fit_is_refused():
    data = torch.zeros(2, 34, dtype=torch.uint8)
    for out in (torch.zeros(2, 31), torch.zeros(32, 2).T):
        with pytest.raises(ValueError, match=r"out must be a contiguous tensor \[2, 32\]"):
            dequantize(data, QuantType.Q8_0, out=out)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("type", QuantType, ids=lambda type: type.name)
def test_a_gpu_gives_the_same_bits_as_the_cpu(type):
    data = torch.from_numpy(random_blocks(type))
    found = dequantize(data.cuda(), type).cpu().numpy()
    np.testing.assert_array_equal(bits(found), bits(dequantize(data, type).numpy()))
