"""The deep-compression autoencoder (DC-AE): pictures in, latents 32 times smaller out, and back.

`encode` turns pictures into latents, `decode` turns latents into pictures. Activations keep the
channels-last memory format from the first convolution to the last, so that the norms and linears,
which work over channels, read them without a copy. Parameters are named as in diffusers'
`AutoencoderDC`, so published checkpoints load without renaming.

Reference: "Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models"
(arXiv 2410.10733); the attention is that of EfficientViT (arXiv 2205.14756).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.sana.autoencoder_dc_config import AutoencoderDCConfig

__all__ = ["AutoencoderDC", "AutoencoderDCConfig"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
}
_NORM_EPS = 1e-5
# ReLU kernels can give a query that meets no key at all; this keeps 0/0 at 0.
_ATTENTION_EPS = 1e-15


def rms_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Divide [B, C, H, W] by the root mean square over C, then scale and shift by [C] vectors.

    The mean is taken in float32 whatever the activations' dtype.
    """
    last = x.movedim(1, -1)
    scale = last.float().square().mean(-1, keepdim=True).add(_NORM_EPS).rsqrt().to(x.dtype)
    return torch.addcmul(bias, last * scale, weight).to(x.dtype).movedim(-1, 1)


class RMSNorm(nn.Module):
    """`rms_norm` with its learnt scale and shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.bias)


def _norm(kind: str, channels: int) -> nn.Module:
    return RMSNorm(channels) if kind == "rms_norm" else nn.BatchNorm2d(channels)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with a norm at the end, added to the input."""

    def __init__(self, channels: int, norm: str, activation: str) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[activation]
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = _norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv2(self.activation(self.conv1(x))))
        return out + x


class MultiscaleProjection(nn.Module):
    """Queries, keys and values summed over a neighbourhood: one coarser scale of attention."""

    def __init__(self, channels: int, heads: int, kernel_size: int) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False
        )
        self.proj_out = nn.Conv2d(channels, channels, 1, groups=3 * heads, bias=False)

    def forward(self, qkv: Tensor) -> Tensor:
        out: Tensor = self.proj_out(self.proj_in(qkv))
        return out


class MultiscaleLinearAttention(nn.Module):
    """EfficientViT's attention with a ReLU kernel: cost linear in the number of positions."""

    def __init__(
        self, channels: int, head_dim: int, kernel_sizes: tuple[int, ...], norm: str
    ) -> None:
        super().__init__()
        heads = channels // head_dim
        inner = heads * head_dim
        self.head_dim = head_dim
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_qkv_multiscale = nn.ModuleList(
            MultiscaleProjection(3 * inner, heads, size) for size in kernel_sizes
        )
        self.to_out = nn.Linear(inner * (1 + len(kernel_sizes)), channels, bias=False)
        self.norm_out = _norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        weight = torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])
        qkv = F.linear(x.movedim(1, -1), weight).movedim(-1, 1)
        scales = [qkv, *(project(qkv) for project in self.to_qkv_multiscale)]
        tokens = torch.cat(scales, dim=1).movedim(1, -1)
        # A head is 3 * head_dim neighbouring channels of the concatenation: the checkpoints were
        # trained so, whichever of to_q, to_k and to_v those channels came from.
        heads = tokens.reshape(batch, height * width, -1, 3, self.head_dim).permute(3, 0, 2, 1, 4)
        query, key, value = heads.float().unbind(0)
        # Products of up to thousands of terms: float32 also under autocast.
        with torch.autocast(x.device.type, enabled=False):
            query, key = F.relu(query), F.relu(key)
            mixed = query @ (key.transpose(-1, -2) @ value)
            total = query @ key.sum(dim=2).unsqueeze(-1)
            mixed = mixed / (total + _ATTENTION_EPS)
        out = mixed.to(x.dtype).transpose(1, 2).reshape(batch, height, width, -1)
        normed: Tensor = self.norm_out(self.to_out(out).movedim(-1, 1))
        return normed + x


class GatedConv(nn.Module):
    """Inverted bottleneck of 1x1, depthwise 3x3 and gated 1x1 convolutions, with a norm."""

    def __init__(self, channels: int, expand_ratio: int = 4) -> None:
        super().__init__()
        hidden = channels * expand_ratio
        self.conv_inverted = nn.Conv2d(channels, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norm = RMSNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
        out: Tensor = self.norm(self.conv_point(value * F.silu(gate)))
        return out + x


class EfficientViTBlock(nn.Module):
    """Multi-scale linear attention for the whole picture, then a gated convolution."""

    def __init__(
        self, channels: int, head_dim: int, kernel_sizes: tuple[int, ...], norm: str
    ) -> None:
        super().__init__()
        self.attn = MultiscaleLinearAttention(channels, head_dim, kernel_sizes, norm)
        self.conv_out = GatedConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_out(self.attn(x))
        return out


class DownBlock(nn.Module):
    """Halve each side by a convolution, plus a shortcut that averages groups of channels."""

    def __init__(
        self, in_channels: int, out_channels: int, unshuffle: bool, shortcut: bool = True
    ) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        self.group_size = in_channels * 4 // out_channels if shortcut else 0
        self.conv = nn.Conv2d(
            in_channels,
            out_channels // 4 if unshuffle else out_channels,
            3,
            stride=1 if unshuffle else 2,
            padding=1,
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        if self.unshuffle:
            out = F.pixel_unshuffle(out, 2)
        if self.group_size:
            out = out + F.pixel_unshuffle(x, 2).unflatten(1, (-1, self.group_size)).mean(dim=2)
        return out


class UpBlock(nn.Module):
    """Double each side by a convolution, plus a shortcut that repeats channels."""

    def __init__(
        self, in_channels: int, out_channels: int, interpolate: bool, shortcut: bool = True
    ) -> None:
        super().__init__()
        self.interpolate = interpolate
        self.repeats = out_channels * 4 // in_channels if shortcut else 0
        self.conv = nn.Conv2d(
            in_channels, out_channels if interpolate else out_channels * 4, 3, padding=1
        )

    def forward(self, x: Tensor) -> Tensor:
        repeated = x.repeat_interleave(self.repeats, dim=1) if self.repeats else None
        if self.interpolate:
            out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
            return out if repeated is None else out + F.pixel_shuffle(repeated, 2)
        out = self.conv(x)
        # Shuffling is linear: add first and shuffle once.
        return F.pixel_shuffle(out if repeated is None else out + repeated, 2)


def _level(
    config: AutoencoderDCConfig, side: str, level: int, norm: str, activation: str
) -> list[nn.Module]:
    channels = getattr(config, f"{side}_block_out_channels")[level]
    layers = getattr(config, f"{side}_layers_per_block")[level]
    if getattr(config, f"{side}_block_types")[level] == "ResBlock":
        return [ResBlock(channels, norm, activation) for _ in range(layers)]
    scales = getattr(config, f"{side}_qkv_multiscales")[level]
    return [
        EfficientViTBlock(channels, config.attention_head_dim, scales, norm) for _ in range(layers)
    ]


class Encoder(nn.Module):
    """Pictures [B, 3, H, W] to latents [B, latent_channels, H/32, W/32]."""

    def __init__(self, config: AutoencoderDCConfig) -> None:
        super().__init__()
        channels = config.encoder_block_out_channels
        layers = config.encoder_layers_per_block
        unshuffle = config.downsample_block_type == "pixel_unshuffle"
        self.conv_in: nn.Module
        if layers[0] > 0:
            self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        else:
            self.conv_in = DownBlock(config.in_channels, channels[1], unshuffle, shortcut=False)
        self.down_blocks = nn.ModuleList()
        for level in range(len(channels)):
            blocks = _level(config, "encoder", level, "rms_norm", "silu")
            if blocks and level + 1 < len(channels):
                blocks.append(DownBlock(channels[level], channels[level + 1], unshuffle))
            self.down_blocks.append(nn.Sequential(*blocks))
        self.conv_out = nn.Conv2d(channels[-1], config.latent_channels, 3, padding=1)
        self.average = channels[-1] // config.latent_channels if config.encoder_out_shortcut else 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        out: Tensor = self.conv_out(x)
        return out + x.unflatten(1, (-1, self.average)).mean(dim=2) if self.average else out


class Decoder(nn.Module):
    """Latents [B, latent_channels, h, w] to pictures [B, 3, 32 h, 32 w]."""

    def __init__(self, config: AutoencoderDCConfig) -> None:
        super().__init__()
        channels = config.decoder_block_out_channels
        layers = config.decoder_layers_per_block
        interpolate = config.upsample_block_type == "interpolate"
        self.conv_in = nn.Conv2d(config.latent_channels, channels[-1], 3, padding=1)
        self.repeats = channels[-1] // config.latent_channels if config.decoder_in_shortcut else 0
        self.up_blocks = nn.ModuleList()
        for level in range(len(channels)):
            norm, activation = config.decoder_norm_types[level], config.decoder_act_fns[level]
            blocks = _level(config, "decoder", level, norm, activation)
            if blocks and level + 1 < len(channels):
                blocks.insert(0, UpBlock(channels[level + 1], channels[level], interpolate))
            self.up_blocks.append(nn.Sequential(*blocks))
        last = channels[0] if layers[0] > 0 else channels[1]
        self.norm_out = RMSNorm(last)
        self.activation = _ACTIVATIONS[config.decoder_conv_act_fn]
        self.conv_out: nn.Module
        if layers[0] > 0:
            self.conv_out = nn.Conv2d(last, config.in_channels, 3, padding=1)
        else:
            self.conv_out = UpBlock(last, config.in_channels, interpolate, shortcut=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_in(x)
        x = out + x.repeat_interleave(self.repeats, dim=1) if self.repeats else out
        for block in reversed(self.up_blocks):
            x = block(x)
        picture: Tensor = self.conv_out(self.activation(self.norm_out(x)))
        return picture


class AutoencoderDC(nn.Module):
    """DC-AE. Where pictures are only made, `encoder` may be set to None and takes no memory."""

    def __init__(self, config: AutoencoderDCConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: Encoder | None = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] to raw latents [B, latent_channels, H/32, W/32].

        H and W are multiples of `spatial_compression_ratio`. The encoder is deterministic;
        multiply by `config.scaling_factor` for the transformer.
        """
        if self.encoder is None:
            raise RuntimeError("the encoder of this autoencoder was dropped")
        ratio = self.config.spatial_compression_ratio
        height, width = pictures.shape[-2:]
        if height % ratio or width % ratio:
            raise ValueError(f"picture is {width}x{height}, both must be multiples of {ratio}")
        latents: Tensor = self.encoder(pictures.contiguous(memory_format=torch.channels_last))
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents [B, latent_channels, h, w] to pictures [B, 3, 32 h, 32 w], about [-1, 1].

        Raw means already divided by `config.scaling_factor`. The result is not clamped.
        """
        pictures: Tensor = self.decoder(latents.contiguous(memory_format=torch.channels_last))
        return pictures
