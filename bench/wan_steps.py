"""One evaluation of a Wan-VACE transformer, ours or diffusers', on the same random clip.

Inputs are made once from a configuration and the sizes of a clip's latents; for each implementation
they become a call without arguments. What is computed once per request is done beforehand on our
side, as in serving; diffusers does it in every call, as its pipeline does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.wan.transformer_config import WanVaceConfig

TEXT_TOKENS = 40

Sizes = tuple[int, int, int]
Step = Callable[[], Tensor]


class Clip:
    """Float32 `latents` [1, C, T, H, W], `context` [1, C, T, H, W], `prompt` [tokens, channels]."""

    def __init__(self, config: WanVaceConfig, sizes: Sizes) -> None:
        """`sizes` are those of the latents: frames, rows, columns."""
        random = torch.Generator().manual_seed(1)
        self.latents = torch.randn(1, config.in_channels, *sizes, generator=random)
        self.context = torch.randn(1, config.vace_in_channels, *sizes, generator=random)
        self.prompt = torch.randn(TEXT_TOKENS, config.text_dim, generator=random)
        self.timesteps = torch.tensor([700.0])
        self.tokens = sizes[0] * sizes[1] * sizes[2] // 4
        self.padded_prompt = torch.zeros(1, config.text_len, config.text_dim)
        self.padded_prompt[0, :TEXT_TOKENS] = self.prompt


def our_step(model: Any, clip: Clip) -> Step:
    """A step of our transformer; text, context and timestep are embedded here."""
    time_modulation = model.embed_timesteps(clip.timesteps)
    text = model.encode_text([clip.prompt.to(model.device)])
    context = model.encode_context(clip.context.to(model.device))
    latents = clip.latents.to(model.device)
    return lambda: model(latents, time_modulation, text, context)


def diffusers_step(model: Any, clip: Clip, dtype: torch.dtype = torch.bfloat16) -> Step:
    """A step of diffusers' transformer, its inputs in the dtype that it computes in."""
    arguments = {
        "hidden_states": clip.latents.to(model.device, dtype),
        "timestep": clip.timesteps.to(model.device),
        "encoder_hidden_states": clip.padded_prompt.to(model.device, dtype),
        "control_hidden_states": clip.context.to(model.device, dtype),
    }

    def step() -> Tensor:
        result: Tensor = model(**arguments, return_dict=False)[0]
        return result

    return step


def relative_difference(value: Tensor, truth: Tensor) -> float:
    """Relative L2 difference, in float64 on the CPU."""
    value, truth = value.double().cpu(), truth.double().cpu()
    return float((value - truth).norm() / truth.norm())
