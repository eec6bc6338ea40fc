"""The packed linear layer against numpy's dequantiser and torch's own linear layer."""

from __future__ import annotations

import threading

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from models.weights.gguf.format import QuantType
from models.weights.gguf.packed_tensor import PackedTensor
from models.weights.packed import linear
from models.weights.packed.linear import PackedLinear
from models.weights.packed.scratch import release_scratch, scratch
from tests.models.runs import relative_error
from tests.models.weights.packed.blocks import random_packed

EVERY_TYPE = tuple(QuantType)


def reference_weight(packed: PackedTensor) -> torch.Tensor:
    kind = GGMLQuantizationType(int(packed.type))
    data = packed.data.numpy()
    if packed.type in (QuantType.F32, QuantType.F16):
        data = data.view(np.float32 if packed.type is QuantType.F32 else np.float16)
    values = gguf.quants.dequantize(data, kind)
    return torch.from_numpy(values.astype(np.float32)).view(packed.shape)


@pytest.mark.parametrize("type", EVERY_TYPE, ids=lambda type: type.name)
@torch.inference_mode()
def test_in_float32_the_layer_is_a_linear_layer_of_the_reference_weight(type):
    packed = random_packed(type, 24, 512)
    bias = torch.randn(24)
    x = torch.randn(2, 5, 512)
    expected = torch.nn.functional.linear(x, reference_weight(packed), bias)
    assert torch.equal(PackedLinear(packed, bias)(x), expected)


@pytest.mark.parametrize("type", [QuantType.Q8_0, QuantType.Q4_K, QuantType.BF16, QuantType.F16])
@torch.inference_mode()
def test_in_bfloat16_the_layer_is_a_linear_layer_of_the_rounded_weight(type):
    packed = random_packed(type, 24, 512)
    x = torch.randn(7, 512, dtype=torch.bfloat16)
    expected = torch.nn.functional.linear(x, reference_weight(packed).bfloat16())
    result = PackedLinear(packed)(x)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, expected)


@torch.inference_mode()
def test_the_bias_takes_the_dtype_of_the_input():
    packed = random_packed(QuantType.Q8_0, 8, 64)
    bias = torch.randn(8)
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    expected = torch.nn.functional.linear(x, reference_weight(packed).bfloat16(), bias.bfloat16())
    assert torch.equal(PackedLinear(packed, bias)(x), expected)


@pytest.mark.parametrize("type", [QuantType.F16, QuantType.Q4_K], ids=lambda type: type.name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_dequantised_weight_is_the_callers_own(type, dtype):
    packed = random_packed(type, 8, 256)
    layer = PackedLinear(packed)
    weight = layer.dequantized(dtype)
    assert torch.equal(weight, reference_weight(packed).to(dtype))
    before = packed.data.clone()
    weight.zero_()
    assert torch.equal(packed.data, before)
    assert layer.dequantized(dtype).any()


@pytest.mark.parametrize("type", [QuantType.Q8_0, QuantType.Q4_K], ids=lambda type: type.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_few_rows_are_multiplied_tile_by_tile_to_the_same_result(type, dtype, monkeypatch):
    monkeypatch.setattr(linear, "_TILE", 32 * 512)
    packed, bias = random_packed(type, 100, 512), torch.randn(100)
    weight = reference_weight(packed).to(dtype)
    x = torch.randn(2, 5, 512, dtype=dtype)
    release_scratch()
    for given in (bias, None):
        expected = torch.nn.functional.linear(x, weight, None if given is None else bias.to(dtype))
        result = PackedLinear(packed, given)(x)
        assert result.shape == (2, 5, 100)
        assert result.is_contiguous()
        assert relative_error(result.float(), expected.float()) < torch.finfo(dtype).eps
    tile = scratch((1,), torch.uint8, x.device).untyped_storage().nbytes()
    assert tile <= max(1, torch.get_num_threads() // 4) * 32 * 512 * dtype.itemsize


def test_layers_share_their_scratch_and_do_not_disturb_each_other():
    release_scratch()
    first = PackedLinear(random_packed(QuantType.Q8_0, 32, 64, seed=1))
    second = PackedLinear(random_packed(QuantType.Q4_0, 16, 64, seed=2))
    x = torch.randn(4, 64)
    alone = first(x), second(x)
    memory = scratch((1,), torch.uint8, x.device).data_ptr()
    assert torch.equal(first(x), alone[0])
    assert torch.equal(second(x), alone[1])
    assert scratch((1,), torch.uint8, x.device).data_ptr() == memory


def test_a_read_only_weight_is_neither_copied_nor_written_to():
    packed = random_packed(QuantType.Q4_K, 8, 256)
    before = packed.data.clone()
    layer = PackedLinear(packed)
    layer(torch.randn(3, 256))
    assert layer.packed.data_ptr() == packed.data.data_ptr()
    assert torch.equal(packed.data, before)


@pytest.mark.parametrize("type", [QuantType.F32, QuantType.Q8_0], ids=lambda type: type.name)
def test_a_weight_at_an_odd_offset_of_the_file_works(type):
    packed = random_packed(type, 8, 64)
    shifted = torch.empty(packed.data.numel() + 1, dtype=torch.uint8)[1:].view_as(packed.data)
    shifted.copy_(packed.data)
    x = torch.randn(3, 64)
    odd = PackedLinear(PackedTensor(shifted, type, packed.shape))
    assert torch.equal(odd(x), PackedLinear(packed)(x))


def test_scratch_made_in_inference_mode_serves_outside_of_it():
    release_scratch()
    layer = PackedLinear(random_packed(QuantType.Q8_0, 8, 64))
    x = torch.randn(3, 64)
    with torch.inference_mode():
        inside = layer(x)
    assert torch.equal(layer(x), inside)


def test_scratch_grows_and_is_one_per_thread():
    release_scratch()
    device = torch.device("cpu")
    small = scratch((4,), torch.float32, device)
    large = scratch((8, 16), torch.bfloat16, device)
    assert large.shape == (8, 16)
    assert scratch((4,), torch.float32, device).data_ptr() == large.data_ptr()
    others = []
    thread = threading.Thread(target=lambda: others.append(scratch((4,), torch.float32, device)))
    thread.start()
    thread.join()
    assert others[0].data_ptr() not in (small.data_ptr(), large.data_ptr())


@torch.inference_mode()
def test_casting_a_model_leaves_packed_weights_alone():
    packed = random_packed(QuantType.Q8_0, 8, 64)
    model = torch.nn.Sequential(PackedLinear(packed, torch.randn(8))).to(torch.bfloat16)
    assert torch.equal(model[0].packed, packed.data)
    assert model[0].bias.dtype == torch.bfloat16


def test_printing_the_layer_names_its_sizes_and_type():
    layer = PackedLinear(random_packed(QuantType.Q6_K, 8, 256))
    assert repr(layer) == "PackedLinear(256, 8, Q6_K)"
