"""The Triton kernels against the torch reference: on a GPU where there is one, else interpreted.

Not collected by name: `test_triton_kernels` runs this file in a process of its own, because the
interpreter must be asked for before anything imports Triton.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from models.weights.gguf.dequantize import dequantize
from models.weights.gguf.format import BLOCK, QuantType
from models.weights.packed import triton_dequantize, triton_linear
from models.weights.packed.kernel_choice import Kernel
from models.weights.packed.linear import PackedLinear
from tests.models.weights.packed.blocks import FACTORS, QUANTISED, random_packed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
every_type = pytest.mark.parametrize("type", QUANTISED, ids=lambda type: type.name)
# Numpy, which the interpreter computes with, warns of what IEEE arithmetic defines.
infinite = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
# Sums of at most 512 float32 products in another order, of the largest result.
ORDER = 1e-6


def assert_same_product(result: torch.Tensor, expected: torch.Tensor, tolerance: float = ORDER):
    assert result.shape == expected.shape
    error = (result.float() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance


def reference(data: torch.Tensor, type: QuantType) -> torch.Tensor:
    # Computed on the CPU, where the numbers are those of the file format's own reference.
    return dequantize(data.cpu(), type).to(DEVICE)


@every_type
def test_float32_results_equal_the_reference_bit_for_bit(type):
    # 5 rows of 1024 fill two programs and a bit.
    packed = random_packed(type, 5, 1024)
    out = torch.full((5, 1024), 7.0, device=DEVICE)
    data = packed.data.to(DEVICE)
    triton_dequantize.dequantize(data, type, out)
    assert torch.equal(out, reference(data, type))


@every_type
def test_one_block_of_bytes_above_127_and_all_scales_extreme(type):
    elements, size = BLOCK[type]
    patterns = [0x0001, 0x8001, 0x03FF, 0x7BFF, 0xFBFF, 0x0000, 0x8000]
    data = torch.full((len(patterns), size), 255, dtype=torch.uint8)
    data[:, size // 2 :] = 170
    for place in FACTORS[type]:
        halves = torch.tensor(patterns, dtype=torch.int32).to(torch.int16).view(torch.float16)
        data.view(torch.float16)[:, place] = halves
    out = torch.empty(len(patterns), elements, device=DEVICE)
    data = data.to(DEVICE)
    triton_dequantize.dequantize(data, type, out)
    assert torch.equal(out.view(torch.int32), reference(data, type).view(torch.int32))


@infinite
def test_infinite_scales_give_infinities_and_nans():
    packed = random_packed(QuantType.Q8_0, 1, 64)
    packed.data.view(torch.float16)[0, 0] = float("inf")
    packed.data.view(torch.float16)[0, 17] = float("nan")
    out = torch.empty(1, 64, device=DEVICE)
    data = packed.data.to(DEVICE)
    triton_dequantize.dequantize(data, packed.type, out)
    torch.testing.assert_close(out, reference(data, packed.type), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("type", [QuantType.Q8_0, QuantType.Q4_K])
def test_bfloat16_results_are_the_reference_rounded_once(type):
    packed = random_packed(type, 3, 512)
    data = packed.data.to(DEVICE)
    out = torch.empty(3, 512, dtype=torch.bfloat16, device=DEVICE)
    triton_dequantize.dequantize(data, type, out)
    # The interpreter truncates where a GPU rounds: up to one unit in the last of 8 places.
    torch.testing.assert_close(out.float(), reference(data, type), rtol=2**-7, atol=0)


@every_type
def test_the_fused_product_equals_dequantising_first(type):
    packed = random_packed(type, 40, 512)
    x = torch.randn(3, 512, device=DEVICE)
    bias = torch.randn(40, device=DEVICE)
    data = packed.data.to(DEVICE)
    result = triton_linear.linear(x, data, type, bias)
    assert_same_product(result, functional.linear(x, reference(data, type), bias))


@pytest.mark.parametrize("rows", [1, 16, 33, 64, 70])
def test_the_fused_product_takes_any_number_of_rows(rows):
    packed = random_packed(QuantType.Q8_0, 33, 96)
    x = torch.randn(rows, 96, device=DEVICE)
    data = packed.data.to(DEVICE)
    result = triton_linear.linear(x, data, packed.type, None)
    assert_same_product(result, functional.linear(x, reference(data, packed.type)))


def test_the_fused_product_keeps_leading_dimensions_and_takes_strided_input():
    packed = random_packed(QuantType.Q4_0, 16, 64)
    x = torch.randn(64, 3, 2, device=DEVICE).permute(2, 1, 0)
    data = packed.data.to(DEVICE)
    result = triton_linear.linear(x, data, packed.type, None)
    assert result.shape == (2, 3, 16)
    assert_same_product(result, functional.linear(x, reference(data, packed.type)))


@infinite
def test_what_lies_behind_the_end_of_a_row_does_not_reach_the_sum():
    # 32 columns leave three quarters of the first tile over; the next rows are infinite.
    packed = random_packed(QuantType.Q8_0, 4, 32)
    packed.data.view(torch.float16)[1:, 0] = float("inf")
    x = torch.randn(2, 32, device=DEVICE)
    data = packed.data.to(DEVICE)
    result = triton_linear.linear(x, data, packed.type, None)
    expected = functional.linear(x, reference(data, packed.type)[:1])
    assert_same_product(result[:, :1], expected)


def test_half_precision_products_round_only_operands_and_result():
    # Interpreted products of bfloat16 are wrong (numpy has no such type), float16 stands in.
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
    packed = random_packed(QuantType.Q5_1, 16, 256)
    x = torch.randn(5, 256, device=DEVICE).to(dtype)
    data = packed.data.to(DEVICE)
    result = triton_linear.linear(x, data, packed.type, None)
    assert result.dtype == dtype
    weight = reference(data, packed.type).to(dtype)
    expected = functional.linear(x.float(), weight.float())
    assert_same_product(result, expected, 2**-8)


@pytest.mark.parametrize("kernel", [Kernel.TRITON, Kernel.FUSED])
def test_the_layer_reaches_both_kernels(kernel, monkeypatch):
    packed = random_packed(QuantType.Q6_K, 16, 256)
    data = packed.data.to(DEVICE)
    bias = torch.randn(16, device=DEVICE)
    layer = PackedLinear(packed, bias).to(DEVICE)
    monkeypatch.setattr(layer, "_kernel", lambda dtype, rows=None: kernel)
    x = torch.randn(2, 3, 256, device=DEVICE)
    expected = functional.linear(x, reference(data, packed.type), bias)
    assert_same_product(layer(x), expected)
