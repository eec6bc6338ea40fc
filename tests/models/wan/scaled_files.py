"""Weights in 8-bit floats with a scale each, under the names that ComfyUI gives them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def scaled_fp8(
    weights: dict[str, Tensor], chosen: Callable[[str], bool], scale: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a file holds, matrices that are `chosen` in 8 bits, and the float32 weights it means.

    `scale` is "scale_weight", of old files, or "weight_scale", of new ones.
    """
    new = scale == "weight_scale"
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for number, (name, tensor) in enumerate(weights.items()):
        stored[name] = meant[name] = tensor.contiguous().clone()
        if tensor.ndim != 2 or not name.endswith(".weight") or not chosen(name):
            continue
        stem = name.removesuffix(".weight")
        # Old files hold one number as [] or [1]; a column has one for each row.
        factor = tensor.abs().amax(1, keepdim=True) / 448 if new else tensor.abs().max() / 448
        stored[name] = (tensor / factor).to(torch.float8_e4m3fn)
        meant[name] = stored[name].float() * factor
        stored[f"{stem}.{scale}"] = factor if new or number % 2 else factor.reshape(1)
        stored[f"{stem}.{'input_scale' if new else 'scale_input'}"] = torch.ones(())
        if new:
            stored[f"{stem}.comfy_quant"] = text_tensor('{"format": "float8_e4m3fn"}')
    return stored, meant


def text_tensor(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
