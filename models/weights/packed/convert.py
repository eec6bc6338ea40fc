"""From packed layers to ones that are converted once, while loading: bfloat16 or 8-bit float.

Layers are converted one at a time, on the device where they will stay: what crosses the bus is the
packed form, and the packed form of one layer is free again before the next begins.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.weights.gguf.format import BLOCK
from models.weights.packed.fp8_linear import Fp8Linear, fits_fp8
from models.weights.packed.linear import PackedLinear
from models.weights.skeleton import skeleton


def materialise(
    module: nn.Module, *, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Replace every `PackedLinear` inside `module` by an `nn.Linear` in `dtype` on `device`."""
    for name in _packed_names(module):
        module.set_submodule(name, _plain(_layer(module, name, device), dtype))


def requantise_fp8(
    module: nn.Module, *, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Replace every `PackedLinear` inside `module` by a `Fp8Linear` on `device`.

    Layers whose numbers were stored unquantised (they matter most) and those whose sizes 8-bit
    matrix products do not take become `nn.Linear` in `dtype`.
    """
    for name in _packed_names(module):
        layer = _layer(module, name, device)
        quantised = BLOCK[layer.type][0] > 1
        if quantised and fits_fp8(layer.out_features, layer.in_features):
            converted: nn.Module = Fp8Linear(layer.dequantized(torch.float32), layer.bias)
        else:
            converted = _plain(layer, dtype)
        module.set_submodule(name, converted)


def _packed_names(module: nn.Module) -> list[str]:
    # Names and not layers: a list of those would keep every one alive to the end.
    return [name for name, layer in module.named_modules() if isinstance(layer, PackedLinear)]


def _layer(module: nn.Module, name: str, device: torch.device) -> PackedLinear:
    return module.get_submodule(name).to(device)


def _plain(layer: PackedLinear, dtype: torch.dtype) -> nn.Linear:
    with skeleton():
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    linear.weight = _frozen(layer.dequantized(dtype))
    if layer.bias is not None:
        linear.bias = _frozen(layer.bias.to(dtype))
    return linear


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
