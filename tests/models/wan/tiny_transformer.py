"""Tiny random Wan-VACE transformers, made by diffusers, for all tests that need one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from diffusers import WanVACETransformer3DModel
from torch import Tensor

from models.wan.transformer import WanVaceConfig, WanVaceTransformer
from models.wan.transformer_names import to_original

TEXT_DIM = 24
TINY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 4,
    "vace_layers": [0, 2],
}
# Widths as the published models have them, so that shapes tell the configuration, and whole blocks
# of quantisation.
WIDE = {**TINY, "num_attention_heads": 1, "attention_head_dim": 128, "ffn_dim": 256, "text_dim": 64}


def make_reference(shape: dict[str, Any] = TINY) -> WanVACETransformer3DModel:
    """Every parameter random: norms start at one and biases at zero, which would hide mistakes."""
    torch.manual_seed(0)
    reference = WanVACETransformer3DModel(**shape).eval()
    for parameter in reference.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return reference


def original_weights(reference: WanVACETransformer3DModel) -> dict[str, Tensor]:
    return {to_original(name): tensor for name, tensor in reference.state_dict().items()}


def make_ours(reference: WanVACETransformer3DModel) -> WanVaceTransformer:
    ours = WanVaceTransformer(WanVaceConfig.from_json(dict(reference.config))).eval()
    ours.load_state_dict(original_weights(reference))
    return ours


def write_gguf(
    path: Path,
    weights: dict[str, Tensor],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
) -> dict[str, Tensor]:
    """Write weights as the community does; returns the numbers that are in the file.

    Matrices of the blocks are quantised, everything else stays float32.
    """
    writer = gguf.GGUFWriter(path, "wan")
    stored: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        values = tensor.float().numpy()
        if values.ndim == 2 and "blocks." in name and name.endswith(".weight"):
            data = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, data, raw_dtype=kind)
            values = gguf.quants.dequantize(data, kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
        stored[name] = torch.from_numpy(np.array(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def make_inputs(batch: int, frames: int, height: int = 4, width: int = 6, text_dim: int = TEXT_DIM):
    """Latents, timesteps, prompts of several lengths and contexts."""
    random = torch.Generator().manual_seed(100 * batch + frames)
    latents = torch.randn(batch, 16, frames, height, width, generator=random)
    context = torch.randn(batch, 96, frames, height, width, generator=random)
    timesteps = torch.rand(batch, generator=random) * 1000
    lengths = [7, 1, 12][:batch]
    prompts = [torch.randn(length, text_dim, generator=random) for length in lengths]
    return latents, timesteps, prompts, context


def relative_error(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth.double()).norm() / truth.double().norm()).item()


@torch.no_grad()
def run_reference(model, latents, timesteps, prompts, context, scales=None) -> Tensor:
    """Clip by clip: the reference takes one timestep and one list of scales a call."""
    outputs = []
    for row, prompt in enumerate(prompts):
        padded = torch.zeros(1, 512, prompt.shape[1])
        padded[0, : len(prompt)] = prompt
        own = None if scales is None else scales if scales.ndim == 1 else scales[row]
        outputs.append(
            model(
                latents[row : row + 1],
                timesteps[row : row + 1],
                padded,
                control_hidden_states=context[row : row + 1],
                control_hidden_states_scale=own,
                return_dict=False,
            )[0]
        )
    return torch.cat(outputs)


@torch.no_grad()
def run_ours(model, latents, timesteps, prompts, context, scales=None) -> Tensor:
    return model(
        latents,
        model.embed_timesteps(timesteps),
        model.encode_text(prompts),
        model.encode_context(context),
        scales,
    )
