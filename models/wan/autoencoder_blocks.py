"""The layers of Wan's autoencoder: norm, residual block, attention, and the steps between levels.

All take a chunk of a clip [B, C, T, H, W] and the `Past` of the pass, and return a chunk. The first
chunk is a single frame: the steps in time leave it as it is, which is why a clip has 4n + 1 frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.wan.causal_conv import CausalConv3d, Past, each_frame

_TINY = 1e-12


class ChannelNorm(nn.Module):
    """Scales every place to unit root mean square over its channels, then by `gamma`."""

    def __init__(self, channels: int, *, trailing: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * trailing))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] of any number of trailing dimensions."""
        gamma = self.gamma.flatten().view(-1, *[1] * (x.ndim - 2))
        # Summed in float32: squares of half-precision activations overflow.
        squares = x.float().square().sum(1, keepdim=True)
        return x * (torch.rsqrt(squares + _TINY) * x.shape[1] ** 0.5).to(x.dtype) * gamma


class ResidualBlock(nn.Module):
    """Two causal convolutions, each after norm and SiLU, beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(in_channels, trailing=3)
        self.conv1 = CausalConv3d(in_channels, out_channels, (3, 3, 3))
        self.norm2 = ChannelNorm(out_channels, trailing=3)
        self.conv2 = CausalConv3d(out_channels, out_channels, (3, 3, 3))
        self.conv_shortcut = (
            CausalConv3d(in_channels, out_channels, (1, 1, 1))
            if in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor, past: Past) -> Tensor:
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x, past)
        x = self.conv1(F.silu(self.norm1(x)), past)
        return self.conv2(F.silu(self.norm2(x)), past) + shortcut


class FrameAttention(nn.Module):
    """Self-attention with one head among the places of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, trailing=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return each_frame(self._attend, x)

    def _attend(self, x: Tensor) -> Tensor:
        places = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)
        query, key, value = places[:, None].chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return x + self.proj(mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


class MidBlock(nn.Module):
    """The deepest level: a residual block on both sides of the attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList([FrameAttention(channels)])

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, past))
        return self.resnets[1](x, past)


class Downsample(nn.Module):
    """Half the side; with `in_time`, half the frames of all chunks but the first as well."""

    def __init__(self, channels: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)
        )
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1)) if in_time else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = each_frame(self.resample, x)
        if self.time_conv is None:
            return x
        before = past.take(self)
        past.keep(self, x[:, :, -1:])
        if before is None:
            return x
        x = torch.cat([before, x], dim=2)
        return F.conv3d(x, self.time_conv.weight, self.time_conv.bias, stride=(2, 1, 1))


class Upsample(nn.Module):
    """Twice the side at half the channels; with `in_time`, twice the frames of later chunks."""

    def __init__(self, channels: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest-exact"),
            nn.Conv2d(channels, channels // 2, 3, padding=1),
        )
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if in_time else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        if self.time_conv is not None:
            if past.take(self) is None:
                # The frame of the first chunk does not count as history of the others.
                past.keep(self, x)
            else:
                pairs = _after_start(self.time_conv, x, past).unflatten(1, (2, -1))
                x = pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        return each_frame(self.resample, x)


class UpBlock(nn.Module):
    """One level of the decoder: residual blocks and the step to the next level."""

    def __init__(
        self, in_channels: int, out_channels: int, num_res_blocks: int, *, step: Upsample | None
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_res_blocks
        self.resnets = nn.ModuleList(ResidualBlock(width, out_channels) for width in widths)
        self.upsamplers = None if step is None else nn.ModuleList([step])

    def forward(self, x: Tensor, past: Past) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, past)
        return x if self.upsamplers is None else self.upsamplers[0](x, past)


def _after_start(conv: CausalConv3d, x: Tensor, past: Past) -> Tensor:
    """A causal convolution in time alone; zeros lie before its first chunk, of any length."""
    history = conv.weight.shape[2] - 1
    before = past.take(conv)
    if before is None:
        before = x.new_zeros(*x.shape[:2], history, *x.shape[3:])
    x = torch.cat([before, x], dim=2)
    past.keep(conv, x[:, :, -history:])
    return F.conv3d(x, conv.weight, conv.bias)
