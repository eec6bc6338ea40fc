"""The 8-bit floating-point layer: its format, its reference and the device's own product."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from models.weights.packed import fp8_linear
from models.weights.packed.fp8_linear import Fp8Linear, quantize_rows, reference_mm, scaled_mm


def test_values_times_scales_are_within_half_a_unit_of_the_input():
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)) * 3
    values, scale = quantize_rows(x)
    assert values.dtype == torch.float8_e4m3fn
    # Three bits of mantissa: half a unit is 1/16 of a value, denormals reach down to 2**-9.
    error = (values.float() * scale[:, None] - x).abs()
    assert (error <= (x.abs() / 16).maximum(scale[:, None] * 2**-10) * 1.0001).all()


def test_the_largest_of_each_row_becomes_the_largest_float8():
    x = torch.randn(6, 64) * torch.logspace(-20, 20, 6)[:, None]
    values, scale = quantize_rows(x)
    assert torch.equal(values.float().abs().amax(dim=1), torch.full((6,), 448.0))
    assert torch.isfinite(values.float()).all()
    torch.testing.assert_close(scale * 448, x.abs().amax(dim=1))


def test_a_row_of_zeros_stays_zero():
    layer = Fp8Linear(torch.zeros(16, 32))
    assert torch.equal(layer(torch.zeros(2, 32)), torch.zeros(2, 16))


def test_the_layer_is_close_to_the_layer_it_was_made_from():
    weight = torch.randn(48, 256) / 16
    bias = torch.randn(48)
    x = torch.randn(2, 5, 256)
    result = Fp8Linear(weight, bias)(x)
    exact = functional.linear(x, weight, bias)
    assert result.shape == exact.shape
    # Two operands with errors of up to 1/16, about 0.026 rms each.
    assert (result - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_input(dtype):
    layer = Fp8Linear(torch.randn(16, 32), torch.randn(16))
    assert layer(torch.randn(3, 32, dtype=dtype)).dtype == dtype


GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(
            not (torch.cuda.is_available() and fp8_linear.supports_fp8(torch.device("cuda"))),
            reason="needs a CUDA device of compute capability 8.9",
        ),
    ],
)


# torch runs the device's operator on a CPU, too.
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_device_product_equals_the_reference(device):
    x, x_scale = quantize_rows(torch.randn(7, 64, device=device))
    weight, weight_scale = quantize_rows(torch.randn(48, 64, device=device))
    result = scaled_mm(x, x_scale, weight, weight_scale)
    expected = reference_mm(x, x_scale, weight, weight_scale)
    assert result.dtype == torch.bfloat16
    # The result is rounded to bfloat16 once.
    torch.testing.assert_close(result.float(), expected, rtol=2**-8, atol=2**-8)


def test_the_device_product_is_taken_where_the_device_has_one(monkeypatch):
    layer = Fp8Linear(torch.randn(16, 32), torch.randn(16))
    x = torch.randn(3, 32)
    reference = layer(x)
    monkeypatch.setattr(fp8_linear, "supports_fp8", lambda device: True)
    native = layer(x)
    assert not torch.equal(native, reference)
    torch.testing.assert_close(native, reference, rtol=2**-7, atol=2**-6)


@pytest.mark.parametrize(
    ("capability", "supported"), [((8, 0), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)]
)
def test_tensor_cores_multiply_8_bit_floats_from_capability_8_9_on(
    capability, supported, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fp8_linear.supports_fp8(torch.device("cuda:0")) is supported


def test_a_cpu_does_not_support_fp8():
    assert not fp8_linear.supports_fp8(torch.device("cpu"))


@pytest.mark.parametrize("shape", [(24, 32), (16, 24)])
def test_sizes_that_are_no_multiples_of_16_are_refused(shape):
    with pytest.raises(ValueError, match=rf"shape \[{shape[0]}, {shape[1]}\].*multiples of 16"):
        Fp8Linear(torch.randn(shape))
