"""Packed layers turned into bfloat16 or 8-bit float ones while loading."""

from __future__ import annotations

import weakref

import torch
from torch import nn

from models.weights.gguf.format import QuantType
from models.weights.packed import convert
from models.weights.packed.convert import materialise, requantise_fp8
from models.weights.packed.fp8_linear import Fp8Linear
from models.weights.packed.linear import PackedLinear
from tests.models.weights.packed.blocks import random_packed

CPU = torch.device("cpu")


def packed_model() -> nn.Module:
    """Quantised, nested, without bias, of a size fp8 does not take, and stored unquantised."""
    return nn.Sequential(
        PackedLinear(random_packed(QuantType.Q8_0, 64, 32, seed=1), torch.randn(64)),
        nn.Sequential(nn.LayerNorm(64), PackedLinear(random_packed(QuantType.Q4_0, 32, 64))),
        PackedLinear(random_packed(QuantType.Q5_0, 40, 32), torch.randn(40)),
        PackedLinear(random_packed(QuantType.F16, 16, 40), torch.randn(16)),
    )


def test_in_float32_a_materialised_model_computes_the_same():
    model = packed_model()
    x = torch.randn(3, 32)
    expected = model(x)
    materialise(model, device=CPU, dtype=torch.float32)
    assert not any(isinstance(layer, PackedLinear) for layer in model.modules())
    assert torch.equal(model(x), expected)


def test_bfloat16_is_the_weight_rounded_once():
    model = packed_model()
    exact = model[0].dequantized(torch.float32)
    materialise(model, device=CPU)
    assert torch.equal(model[0].weight, exact.bfloat16())
    assert model[0].bias.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in model[0].parameters())


def test_only_quantised_layers_of_fitting_sizes_become_fp8():
    model = packed_model()
    x = torch.randn(5, 32)
    expected = model(x)
    requantise_fp8(model, device=CPU, dtype=torch.float32)
    kinds = [type(model[0]), type(model[1][1]), type(model[2]), type(model[3])]
    assert kinds == [Fp8Linear, Fp8Linear, nn.Linear, nn.Linear]
    # Two of four layers with errors of some 4 percent each.
    result = model(x)
    assert (result - expected).norm() / expected.norm() < 0.1


def test_a_packed_weight_is_free_before_the_next_layer_is_converted(monkeypatch):
    model = nn.Sequential(
        *(PackedLinear(random_packed(QuantType.Q8_0, 32, 32, seed=n)) for n in range(3))
    )
    packed = [weakref.ref(layer) for layer in model]
    alive = []
    convert_one = convert._plain

    def counted(layer, dtype):
        alive.append(sum(reference() is not None for reference in packed))
        return convert_one(layer, dtype)

    monkeypatch.setattr(convert, "_plain", counted)
    materialise(model, device=CPU)
    assert alive == [3, 2, 1]
