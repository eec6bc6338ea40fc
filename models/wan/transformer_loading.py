"""A Wan-VACE transformer from one GGUF file or from safetensors, under any of its naming forms.

Both kinds of file are mapped. The module is built without memory and every tensor goes straight to
where it stays: as a view of the map where nothing has to change, else converted one at a time, so
that no second copy of the model ever exists. Names, shapes and kinds of numbers are all compared
before the first tensor is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from config.model_spec import Residency
from models.errors import CheckpointError
from models.wan.gguf_identify import require_wan_vace
from models.wan.tensor_check import check_shapes
from models.wan.transformer import WanVaceTransformer
from models.wan.transformer_config import (
    WanVaceConfig,
    expected_shapes,
    infer_config,
    unfolded,
)
from models.wan.transformer_names import to_original
from models.wan.transformer_tensors import StoredTensor, gguf_tensors, stored_tensors
from models.weights.gguf.file import GgufFile
from models.weights.packed.fp8_linear import Fp8Linear, fits_fp8
from models.weights.packed.linear import PackedLinear
from models.weights.skeleton import skeleton

# The reference computes these in float32: small ones are stored so, matrices stay as they are.
_FLOAT32_SMALL = (".modulation", ".norm_q.weight", ".norm_k.weight", ".norm3.weight", ".norm3.bias")
_FLOAT32_MATRICES = ("time_embedding.", "time_projection.", "head.head.")


def load_transformer(
    path: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    residency: Residency = "bf16",
    config: WanVaceConfig | None = None,
    variant: str | None = None,
) -> WanVaceTransformer:
    """The transformer at `path`: a GGUF file, a safetensors file, or a folder of the latter.

    Activations are `dtype`. `residency` says what becomes of the large weights: "packed" leaves
    those that are quantised as they are in the file, "bf16" converts all to `dtype`, "fp8" those of
    the blocks to 8-bit floats. Without a `config` the tensors' shapes tell it. `variant` chooses
    among the copies in a folder. Parameters are frozen and, on a CPU, may be read-only views of the
    file. Raises CheckpointError and UnsupportedCheckpoint, one line that names the file and the
    tensors at fault.
    """
    device = torch.device(device)
    if path.suffix == ".gguf":
        with GgufFile.open(path) as file:
            require_wan_vace(path, file.header)
            return _assemble(path, gguf_tensors(file), device, dtype, residency, config)
    return _assemble(path, stored_tensors(path, variant), device, dtype, residency, config)


def _assemble(
    path: Path,
    stored: Iterable[StoredTensor],
    device: torch.device,
    dtype: torch.dtype,
    residency: Residency,
    config: WanVaceConfig | None,
) -> WanVaceTransformer:
    tensors: dict[str, StoredTensor] = {}
    for tensor in stored:
        name = to_original(tensor.name)
        if name in tensors:
            raise CheckpointError(
                f"{path}: tensors {tensors[name].name!r} and {tensor.name!r} are both {name!r}"
            )
        tensors[name] = tensor
    try:
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        config = config or infer_config(shapes)
        expected = expected_shapes(config)
        check_shapes(unfolded(shapes, expected), expected)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error

    with skeleton():
        transformer = WanVaceTransformer(config)
    for module_name, module in list(transformer.named_modules()):
        layer = None
        if isinstance(module, nn.Linear):
            layer = _quantized_layer(module_name, tensors, device, dtype, residency)
        if layer is not None:
            parent_name, _, leaf = module_name.rpartition(".")
            setattr(transformer.get_submodule(parent_name), leaf, layer)
            continue
        for leaf, _ in list(module.named_parameters(recurse=False)):
            name = f"{module_name}.{leaf}" if module_name else leaf
            tensor = tensors[name].dense(_resting_dtype(name, tensors[name], dtype), device)
            whole = tensor.reshape(expected[name])
            setattr(module, leaf, nn.Parameter(whole, requires_grad=False))
    transformer.eval()
    return transformer


def _quantized_layer(
    name: str,
    tensors: Mapping[str, StoredTensor],
    device: torch.device,
    dtype: torch.dtype,
    residency: Residency,
) -> nn.Module | None:
    """The layer that takes the place of a plain linear one, if any does."""
    weight = tensors[f"{name}.weight"]
    make: Callable[[Tensor], nn.Module]
    if residency == "packed" and (packed := weight.packed(device)) is not None:

        def make(bias: Tensor) -> nn.Module:
            return PackedLinear(packed, bias)

    elif residency == "fp8" and "blocks." in name and fits_fp8(*weight.shape):

        def make(bias: Tensor) -> nn.Module:
            return Fp8Linear(weight.dense(torch.float32, device), bias)

    else:
        return None
    return make(tensors[f"{name}.bias"].dense(dtype, device))


def _resting_dtype(name: str, tensor: StoredTensor, dtype: torch.dtype) -> torch.dtype:
    if name.endswith(_FLOAT32_SMALL):
        return torch.float32
    if name.startswith(_FLOAT32_MATRICES):
        return tensor.plain_dtype or torch.float32
    return dtype
