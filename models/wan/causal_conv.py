"""Convolutions that look back in time and never forward, over a clip that comes in pieces.

A clip is worked on in chunks of frames, one after another. What a layer has to remember of the
chunks before lies in a `Past`, an explicit value that belongs to one pass over one clip; any
cutting into chunks gives the same result as the whole clip at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Past:
    """What layers remember of the chunks before; empty before the first one."""

    def __init__(self) -> None:
        self._frames: dict[nn.Module, Tensor] = {}

    def take(self, layer: nn.Module) -> Tensor | None:
        """The last frames [B, C, T, H, W] that `layer` was given, None before its first chunk."""
        return self._frames.get(layer)

    def keep(self, layer: nn.Module, frames: Tensor) -> None:
        """Remember a copy of `frames`, for a view would keep the whole chunk in memory."""
        self._frames[layer] = frames.clone()


class CausalConv3d(nn.Module):
    """A 3-D convolution of stride 1 whose output at a frame depends on it and those before.

    Before the first frame lie zeros. Weight [out, in, kt, k, k] and bias are named as in
    `nn.Conv3d`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.padding = kernel[1] // 2
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """The next chunk [B, C, T, H, W] of a clip."""
        history = self.weight.shape[2] - 1
        if history == 0:
            return F.conv3d(x, self.weight, self.bias, padding=(0, self.padding, self.padding))
        before = past.take(self)
        if before is None and x.shape[2] == 1:
            past.keep(self, x)
            return self._alone(x)
        if before is None:
            before = x[:, :, :0]
        missing = history - before.shape[2]
        x = torch.cat([before, x], dim=2)
        past.keep(self, x[:, :, -history:])
        if missing > 0:
            x = F.pad(x, (0, 0, 0, 0, missing, 0))
        return F.conv3d(x, self.weight, self.bias, padding=(0, self.padding, self.padding))

    def _alone(self, x: Tensor) -> Tensor:
        """The first frame: all but the last slice of the kernel meet zeros, so one is enough."""
        weight = self.weight[:, :, -1]
        return F.conv2d(x[:, :, 0], weight, self.bias, padding=self.padding)[:, :, None]


def each_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer for pictures applied to every frame of [B, C, T, H, W]."""
    batch, _, frames = x.shape[:3]
    pictures = layer(x.transpose(1, 2).flatten(0, 1))
    result: Tensor = pictures.unflatten(0, (batch, frames)).transpose(1, 2)
    return result
