"""Wan's causal video autoencoder: clips to latents and back, piece by piece.

A clip [B, 3, 4n + 1, H, W] becomes latents [B, 16, n + 1, H / 8, W / 8]: the first frame alone,
every further four frames together. Memory depends on the size of a frame and of a chunk, not on the
length of the clip. Parameters are named as in diffusers' AutoencoderKLWan; the same code trains.

Follows Wan: Open and Advanced Large-Scale Video Generative Models, arXiv:2503.20314, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.pipeline import KeepGoing, to_the_end
from models.wan.autoencoder_blocks import (
    ChannelNorm,
    Downsample,
    MidBlock,
    ResidualBlock,
    UpBlock,
    Upsample,
)
from models.wan.autoencoder_config import WanAutoencoderConfig
from models.wan.causal_conv import CausalConv3d, Past
from models.wan.latent_shape import FRAMES_PER_LATENT, PIXELS_PER_LATENT

__all__ = ["WanAutoencoder", "WanAutoencoderConfig"]


class _Encoder(nn.Module):
    def __init__(self, config: WanAutoencoderConfig) -> None:
        super().__init__()
        width = config.base_dim
        self.conv_in = CausalConv3d(3, width, (3, 3, 3))
        self.down_blocks = nn.ModuleList()
        steps = (*config.temperal_downsample, None)
        for multiple, in_time in zip(config.dim_mult, steps, strict=True):
            for _ in range(config.num_res_blocks):
                self.down_blocks.append(ResidualBlock(width, config.base_dim * multiple))
                width = config.base_dim * multiple
            if in_time is not None:
                self.down_blocks.append(Downsample(width, in_time=in_time))
        self.mid_block = MidBlock(width)
        self.norm_out = ChannelNorm(width, trailing=3)
        self.conv_out = CausalConv3d(width, 2 * config.z_dim, (3, 3, 3))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = self.conv_in(x, past)
        for block in self.down_blocks:
            x = block(x, past)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x, past))), past)


class _Decoder(nn.Module):
    def __init__(self, config: WanAutoencoderConfig) -> None:
        super().__init__()
        width = config.base_dim * config.dim_mult[-1]
        self.conv_in = CausalConv3d(config.z_dim, width, (3, 3, 3))
        self.mid_block = MidBlock(width)
        self.up_blocks = nn.ModuleList()
        steps = (*config.temperal_downsample[::-1], None)
        for multiple, in_time in zip(config.dim_mult[::-1], steps, strict=True):
            wide = config.base_dim * multiple
            step = None if in_time is None else Upsample(wide, in_time=in_time)
            self.up_blocks.append(UpBlock(width, wide, config.num_res_blocks, step=step))
            width = wide // 2
        self.norm_out = ChannelNorm(wide, trailing=3)
        self.conv_out = CausalConv3d(wide, 3, (3, 3, 3))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = self.mid_block(self.conv_in(x, past), past)
        for block in self.up_blocks:
            x = block(x, past)
        return self.conv_out(F.silu(self.norm_out(x)), past)


class WanAutoencoder(nn.Module):
    """The autoencoder of Wan 2.1. Latents are the posterior's mean; nothing is drawn at random."""

    def __init__(self, config: WanAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.quant_conv = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.post_quant_conv = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = _Decoder(config)

    def encode(
        self, video: Tensor, *, latents_at_once: int = 1, keep_going: KeepGoing = to_the_end
    ) -> Tensor:
        """Latents [B, z_dim, n + 1, H / 8, W / 8] of a clip [B, 3, 4n + 1, H, W] in [-1, 1].

        `latents_at_once` is how many latents' frames are in memory together; the result does not
        depend on it. `keep_going` is called before each such piece. Raises ValueError for a clip of
        another length or a side that 8 does not divide.
        """
        frames, height, width = video.shape[2:]
        if frames % FRAMES_PER_LATENT != 1:
            raise ValueError(f"video has {frames} frames, expected 4n + 1")
        if height % PIXELS_PER_LATENT or width % PIXELS_PER_LATENT:
            raise ValueError(f"video is {width}x{height}, expected multiples of 8")
        past = Past()
        chunks = _chunks(video, latents_at_once * FRAMES_PER_LATENT)
        pieces: list[Tensor] = []
        for chunk in chunks:
            keep_going()
            pieces.append(self.encoder(chunk, past))
        moments = torch.cat(pieces, dim=2)
        return self.quant_conv(moments, past)[:, : self.config.z_dim]

    def decode(
        self, latents: Tensor, *, latents_at_once: int = 1, keep_going: KeepGoing = to_the_end
    ) -> Tensor:
        """The clip [B, 3, 4n + 1, 8 h, 8 w] of latents [B, z_dim, n + 1, h, w].

        Values lie about [-1, 1]; some overshoot. `keep_going` is called after each piece.
        """
        pieces: list[Tensor] = []
        for frames in self.frames(latents, latents_at_once=latents_at_once):
            pieces.append(frames)
            keep_going()
        return torch.cat(pieces, dim=2)

    def frames(self, latents: Tensor, *, latents_at_once: int = 1) -> Iterator[Tensor]:
        """`decode`, chunk by chunk in their order, so that whoever asks may stop in between."""
        past = Past()
        latents = self.post_quant_conv(latents, past)
        for chunk in _chunks(latents, latents_at_once):
            yield self.decoder(chunk, past)

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents as `encode` gives them to what the transformer sees: about unit variance."""
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """The reverse of `normalize`."""
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        numbers = torch.tensor([self.config.latents_mean, self.config.latents_std])
        mean, std = numbers.to(latents.device, latents.dtype)[:, None, :, None, None, None]
        return mean, std


def _chunks(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """The first frame alone, then `size` frames at a time."""
    return (x[:, :, :1], *(x[:, :, 1:].split(size, dim=2) if x.shape[2] > 1 else ()))
