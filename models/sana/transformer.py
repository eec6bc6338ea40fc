"""Sana's linear diffusion transformer: latents, embedded time and text in, velocity out.

Everything that does not depend on the latents is computed apart, once per request: `encode_text`
gives the keys and values of every cross-attention, `embed_timesteps` the embeddings of a whole
schedule. `forward` is one evaluation of the velocity, for samples that may each be at a timestep of
their own. The same code trains: gradients flow through all three.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.sana.blocks import RMSNorm, SanaBlock, modulated_layer_norm
from models.sana.conditioning import TextConditioning
from models.sana.embeddings import (
    CaptionProjection,
    TimeEmbedding,
    TimeGuidanceEmbedding,
    position_embedding,
)
from models.sana.transformer_config import SanaTransformerConfig
from models.time_modulation import TimeModulation

__all__ = ["SanaTransformer", "SanaTransformerConfig", "TextConditioning", "TimeModulation"]

_OUTPUT_NORM_EPS = 1e-6


class _PatchEmbedding(nn.Module):
    """Holds the patch projection under its checkpoint name."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to tokens [B, h/p * w/p, D]."""
        patches = _patchify(latents, self.proj.kernel_size[0])
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class SanaTransformer(nn.Module):
    """The transformer of Sana (Xie et al., arXiv:2410.10629) with published parameter names.

    A state dict in diffusers' SanaTransformer2DModel naming loads as it is. Runs in the dtype of
    its weights (float32, bfloat16 or float16); linear attention sums are float32 in any case.
    """

    def __init__(self, config: SanaTransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.inner_dim
        self.patch_embed = _PatchEmbedding(config.in_channels, dim, config.patch_size)
        self.time_embed = (
            TimeGuidanceEmbedding(dim) if config.guidance_embeds else TimeEmbedding(dim)
        )
        self.caption_projection = CaptionProjection(config.caption_channels, dim)
        self.caption_norm = RMSNorm(dim)
        self.transformer_blocks = nn.ModuleList(
            SanaBlock(
                dim,
                config.num_attention_heads,
                config.num_cross_attention_heads,
                mlp_ratio=config.mlp_ratio,
                attention_bias=config.attention_bias,
                qk_norm=config.qk_norm is not None,
                norm_eps=config.norm_eps,
            )
            for _ in range(config.num_layers)
        )
        self.scale_shift_table = nn.Parameter(torch.empty(2, dim).normal_(std=dim**-0.5))
        self.proj_out = nn.Linear(dim, config.patch_size**2 * config.out_channels)

    def encode_text(self, text_embeds: Tensor, text_mask: Tensor | None = None) -> TextConditioning:
        """Text encoder states [B, T, caption_channels] to the keys and values of every layer.

        `text_mask` [B, T] is true where a token counts; the others are dropped, wherever they are,
        which is what masking them in every layer would do. None keeps all. Raises ValueError when
        a prompt keeps no token or the channels do not fit.
        """
        if text_embeds.shape[-1] != self.config.caption_channels:
            raise ValueError(
                f"text_embeds has {text_embeds.shape[-1]} channels, "
                f"expected {self.config.caption_channels}"
            )
        if text_mask is None:
            lengths = [text_embeds.shape[1]] * len(text_embeds)
        else:
            text_embeds, lengths = _drop_padding(text_embeds, text_mask.bool())
        text = self.caption_projection(text_embeds.to(self.caption_norm.weight.dtype))
        text = self.caption_norm(text)
        layers = [block.attn2.project_text(text) for block in self.transformer_blocks]
        return TextConditioning.of(torch.stack(layers, dim=1), lengths)

    def embed_timesteps(self, timesteps: Tensor, guidance: Tensor | None = None) -> TimeModulation:
        """Embed timesteps [N], each in 0..1000, for all steps of a schedule or all samples at once.

        `guidance` [N] is required if and only if the config has `guidance_embeds`. Both are taken
        as the network was trained on them: multiply a plain timestep by `timestep_scale` and a
        guidance scale by `guidance_embeds_scale` before. Raises ValueError when guidance is missing
        or not wanted.
        """
        return TimeModulation(*self.time_embed(timesteps, guidance))

    def forward(self, latents: Tensor, time: TimeModulation, text: TextConditioning) -> Tensor:
        """The velocity (noise minus data) at `latents` [B, C, h, w], same shape and dtype.

        `time` holds one timestep for the whole batch or one per sample; `text` one prompt per
        sample. h and w are any multiples of the patch size. Raises ValueError when they are not or
        when the batch sizes disagree.
        """
        config = self.config
        batch, _, height, width = latents.shape
        if height % config.patch_size or width % config.patch_size:
            raise ValueError(f"latents of {height} x {width} do not divide by {config.patch_size}")
        if len(time.embedded) not in (1, batch) or len(text.lengths) != batch:
            raise ValueError(
                f"{batch} latents with {len(time.embedded)} timesteps and {len(text.lengths)} texts"
            )
        height, width = height // config.patch_size, width // config.patch_size

        x = self.patch_embed(latents.to(self.proj_out.weight.dtype))
        if config.interpolation_scale is not None:
            base_size = config.sample_size // config.patch_size
            position = position_embedding(
                config.inner_dim, height, width, base_size, config.interpolation_scale, x.device
            )
            x = (x + position).to(x.dtype)

        modulations = self.block_modulations(time)
        for block, modulation, key_value in zip(
            self.transformer_blocks, modulations, text.key_values.unbind(1), strict=True
        ):
            x = block(x, modulation, key_value, text.bias, height, width)

        shift, scale = (self.scale_shift_table[:, None, None] + time.embedded[:, None]).unbind(0)
        x = self.proj_out(modulated_layer_norm(x, shift, scale + 1, _OUTPUT_NORM_EPS))
        return _unpatchify(x, height, width, config.patch_size).to(latents.dtype)

    def block_modulations(self, time: TimeModulation) -> tuple[Tensor, ...]:
        """Per block [6, N, 1, D] as `SanaBlock` takes it: scales already plus one."""
        tables = torch.stack([block.scale_shift_table for block in self.transformer_blocks])
        one = torch.zeros_like(tables)
        one[:, [1, 4]] = 1
        modulation = tables[:, :, None, None] + time.modulation.transpose(0, 1)[None, :, :, None]
        return (modulation + one[:, :, None, None]).unbind(0)


def _drop_padding(text_embeds: Tensor, mask: Tensor) -> tuple[Tensor, list[int]]:
    """Move the kept tokens of each row to the front in order, cut to the longest, zero the rest."""
    lengths = mask.sum(dim=1).tolist()
    if min(lengths) < 1:
        raise ValueError(f"text_mask: prompt {lengths.index(min(lengths))} keeps no token")
    order = mask.int().argsort(dim=1, descending=True, stable=True)[:, : max(lengths)]
    kept = torch.take_along_dim(mask, order, dim=1)[..., None]
    text_embeds = torch.take_along_dim(text_embeds, order[..., None], dim=1)
    # Not a multiplication: a padded position may hold anything, even NaN.
    return text_embeds.masked_fill(~kept, 0), lengths


def _patchify(latents: Tensor, patch_size: int) -> Tensor:
    """[B, C, h, w] to [B, h/p * w/p, C * p * p], channels before the places inside a patch."""
    if patch_size == 1:
        return latents.flatten(2).transpose(1, 2)
    return F.unfold(latents, patch_size, stride=patch_size).transpose(1, 2)


def _unpatchify(x: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """[B, h * w, p * p * C] to [B, C, h * p, w * p], places inside a patch before the channels."""
    x = x.unflatten(1, (height, width)).unflatten(-1, (patch_size, patch_size, -1))
    x = x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    return x
