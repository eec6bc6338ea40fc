"""Wan's video transformer with VACE blocks: latents, time, text and context in, velocity out.

Everything that does not depend on the latents is computed apart, once per request: `encode_text`
gives the keys and values of every cross-attention, `embed_timesteps` the modulation of a whole
schedule, `encode_context` the tokens of the VACE context. `forward` is one evaluation of the
velocity, for clips that may each be at a timestep of their own. The same code trains in float32:
gradients flow through all four.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.time_modulation import TimeModulation
from models.wan.blocks import VaceBlock, WanBlock, modulated_layer_norm
from models.wan.rope import rotations
from models.wan.step_conditioning import TextConditioning, pad_prompts
from models.wan.transformer_config import WanVaceConfig

__all__ = ["TextConditioning", "TimeModulation", "WanVaceConfig", "WanVaceTransformer"]

_MAX_PERIOD = 10_000.0


class _Head(nn.Module):
    """The last modulated norm and the projection to latents, in float32 throughout."""

    def __init__(self, dim: int, out_features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.head = nn.Linear(dim, out_features)
        self.modulation = nn.Parameter(torch.empty(1, 2, dim).normal_(std=dim**-0.5))

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        shift, scale = (self.modulation.float() + embedded[:, None]).unbind(1)
        return _linear_float32(self.head, modulated_layer_norm(x.float(), shift, scale, self.eps))


class WanVaceTransformer(nn.Module):
    """The transformer of Wan 2.1 VACE (arXiv:2503.20314, arXiv:2503.07598), original names.

    Runs in the dtype of its patch embedding, float32 or bfloat16; parts that the reference keeps in
    float32 may be stored so. Any 2-D weight may be replaced by a layer that keeps it quantised.
    """

    def __init__(self, config: WanVaceConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, config.patch_size
        sizes = (dim, config.ffn_dim, config.num_heads, config.eps)
        self.patch_embedding = nn.Conv3d(config.in_channels, dim, patch, stride=patch)
        self.vace_patch_embedding = nn.Conv3d(config.vace_in_channels, dim, patch, stride=patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(WanBlock(*sizes) for _ in range(config.num_layers))
        self.vace_blocks = nn.ModuleList(
            VaceBlock(*sizes, is_first=index == 0) for index in range(len(config.vace_layers))
        )
        self.head = _Head(dim, math.prod(patch) * config.out_channels, config.eps)

    @property
    def dtype(self) -> torch.dtype:
        """What the activations between layers are kept in."""
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where inputs are expected."""
        return self.patch_embedding.weight.device

    def encode_text(self, prompts: Sequence[Tensor] | Tensor) -> TextConditioning:
        """Text encoder states of several prompts, each [n, text_dim], as every layer sees them.

        Each prompt counts as padded by zeros to the config's `text_len`. Raises ValueError when one
        is longer or has other channels.
        """
        for prompt in prompts:
            if prompt.shape[-1] != self.config.text_dim:
                raise ValueError(
                    f"a prompt has {prompt.shape[-1]} channels, expected {self.config.text_dim}"
                )
        on_device = [prompt.to(self.device) for prompt in prompts]
        text, bias = pad_prompts(on_device, self.config.text_len, self.dtype)
        text = self.text_embedding(text)
        layers = [
            block.cross_attn.project_text(text) for block in (*self.blocks, *self.vace_blocks)
        ]
        return TextConditioning(torch.stack(layers, dim=1), bias)

    def embed_timesteps(self, timesteps: Tensor) -> TimeModulation:
        """Embed timesteps [N], each in 0..1000, for all steps of a schedule or all clips at once.

        Both results are float32.
        """
        half = self.config.freq_dim // 2
        # On the CPU: not every device has float64, and the angles need it.
        steps = torch.arange(half, dtype=torch.float64, device="cpu") / half
        angles = timesteps.cpu().double()[:, None] * _MAX_PERIOD**-steps
        sinusoids = torch.cat((angles.cos(), angles.sin()), dim=-1).float().to(self.device)
        first, activation, last = self.time_embedding
        embedded = _linear_float32(last, activation(_linear_float32(first, sinusoids)))
        modulation = _linear_float32(self.time_projection[1], F.silu(embedded))
        return TimeModulation(modulation.unflatten(-1, (6, -1)), embedded)

    def encode_context(self, context: Tensor) -> Tensor:
        """Tokens [B, N, D] of a VACE context [B, vace_in_channels, T, H, W].

        Raises ValueError when channels or sizes do not fit the patches.
        """
        return self._embed_patches(self.vace_patch_embedding, context, "context")

    def forward(
        self,
        latents: Tensor,
        time: TimeModulation,
        text: TextConditioning,
        context: Tensor,
        scales: Tensor | None = None,
    ) -> Tensor:
        """The velocity (noise minus data) at `latents` [B, C, T, H, W]: float32, same T, H, W.

        `time` holds one timestep for the whole batch or one per clip, `text` one prompt per clip,
        `context` [B, N, D] the tokens from `encode_context`. `scales`, [VACE blocks] or [B, VACE
        blocks], weigh the hints; None means 1. Raises ValueError when sizes or batches disagree.
        """
        x = self._embed_patches(self.patch_embedding, latents, "latents")
        batch, _, frames, height, width = latents.shape
        if context.shape != x.shape:
            raise ValueError(
                f"context has tokens {list(context.shape)}, latents have {list(x.shape)}"
            )
        if len(time.embedded) not in (1, batch) or len(text.bias) != batch:
            raise ValueError(
                f"{batch} latents with {len(time.embedded)} timesteps and {len(text.bias)} texts"
            )
        if scales is not None:
            scales = self._checked_scales(scales, batch)
        _, rows, columns = self.config.patch_size
        grid = (frames, height // rows, width // columns)
        table = rotations(self.config.head_dim, grid, x.device)
        key_values = text.key_values.unbind(1)

        index_of = {layer: index for index, layer in enumerate(self.config.vace_layers)}
        for layer, block in enumerate(self.blocks):
            # A hint depends on the trunk only through its very first tokens, so that making each
            # one when it is due is the same as making all of them first, without keeping them.
            hint: Tensor | None = None
            if (index := index_of.get(layer)) is not None:
                key_value = key_values[len(self.blocks) + index]
                context, hint = self.vace_blocks[index](
                    context, x, time.modulation, key_value, text.bias, table
                )
            x = block(x, time.modulation, key_values[layer], text.bias, table)
            if hint is not None:
                x = x + hint if scales is None else torch.addcmul(x, hint, scales[index])

        return _unpatchify(self.head(x, time.embedded), grid, self.config.patch_size)

    def blocks_in_call_order(self) -> list[nn.Module]:
        """Every block once, in the order in which `forward` uses them."""
        order: list[nn.Module] = []
        vace_blocks = dict(zip(self.config.vace_layers, self.vace_blocks, strict=True))
        for layer, block in enumerate(self.blocks):
            if layer in vace_blocks:
                order.append(vace_blocks[layer])
            order.append(block)
        return order

    def _embed_patches(self, convolution: nn.Conv3d, x: Tensor, name: str) -> Tensor:
        """[B, C, T, H, W] to tokens [B, N, D]: a convolution without overlap is a linear layer."""
        patch = self.config.patch_size
        if x.ndim != 5 or x.shape[1] != convolution.in_channels:
            raise ValueError(
                f"{name} has shape {list(x.shape)}, expected [B, {convolution.in_channels}, "
                "T, H, W]"
            )
        if any(size % side for size, side in zip(x.shape[2:], patch, strict=True)):
            raise ValueError(f"{name} of {list(x.shape[2:])} do not divide by {list(patch)}")
        patches = _patchify(x.to(self.dtype), patch)
        return F.linear(patches, convolution.weight.flatten(1), convolution.bias)

    def _checked_scales(self, scales: Tensor, batch: int) -> Tensor:
        """[VACE blocks, B or 1, 1, 1] in the dtype of the activations."""
        count = len(self.vace_blocks)
        if scales.shape not in ((count,), (batch, count)):
            raise ValueError(
                f"scales has shape {list(scales.shape)}, expected [{count}] or [{batch}, {count}]"
            )
        scales = scales.to(self.device, self.dtype).view(-1, count)
        return scales.T[:, :, None, None]


def _linear_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer on float32 `x`, in float32 whatever its weights are stored in."""
    if isinstance(layer, nn.Linear):
        bias = None if layer.bias is None else layer.bias.float()
        return F.linear(x, layer.weight.float(), bias)
    result: Tensor = layer(x)
    return result


def _patchify(x: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """[B, C, T, H, W] to [B, N, C * places], channels before the places inside a patch."""
    for axis, side in zip((2, 4, 6), patch, strict=True):
        x = x.unflatten(axis, (-1, side))
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.flatten(4).flatten(1, 3)


def _unpatchify(x: Tensor, grid: tuple[int, int, int], patch: tuple[int, int, int]) -> Tensor:
    """[B, N, places * C] to [B, C, T, H, W], places inside a patch before the channels."""
    x = x.unflatten(1, grid).unflatten(-1, (*patch, -1))
    x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
