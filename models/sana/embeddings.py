"""How a Sana transformer sees time, guidance, place and captions before its first block.

Plain numbers (timesteps, guidance scales, grid sizes) and text encoder states come in; embeddings
of the transformer's width go out. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SINUSOID_CHANNELS = 256
_MAX_PERIOD = 10_000.0


def sinusoidal_embedding(values: Tensor) -> Tensor:
    """Cosines, then sines, of values [N] at 128 frequencies from 1 to 1/10000: float32 [N, 256].

    Follows Ho et al., arXiv:2006.11239, with the cosines first.
    """
    half = _SINUSOID_CHANNELS // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    frequencies = torch.exp(steps * -math.log(_MAX_PERIOD) / half)
    angles = values.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


@lru_cache(maxsize=8)
def position_embedding(
    dim: int,
    height: int,
    width: int,
    base_size: int,
    interpolation_scale: float,
    device: torch.device,
) -> Tensor:
    """Sine-cosine embedding of a height x width grid of tokens: float32 [height * width, dim].

    The first half of the channels tells the column, the second half the row. Every grid is
    stretched to `base_size / interpolation_scale` units a side, so that a picture of any size spans
    the positions seen in training. `dim` is a multiple of 4. Recent grids are remembered.
    """
    quarter = dim // 4
    # On the CPU first: not every device has float64.
    steps = torch.arange(quarter, dtype=torch.float64, device="cpu")
    frequencies = _MAX_PERIOD ** -(steps / quarter)

    def axis(length: int) -> Tensor:
        places = torch.arange(length, dtype=torch.float64, device="cpu")
        angles = (places * (base_size / length / interpolation_scale))[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)

    columns = axis(width)[None, :].expand(height, width, -1)
    rows = axis(height)[:, None].expand(height, width, -1)
    return torch.cat((columns, rows), dim=-1).flatten(0, 1).to(device, torch.float32)


class TwoLayerPerceptron(nn.Module):
    """`linear_1`, an activation, `linear_2`: [..., in_dim] to [..., dim]."""

    def __init__(self, in_dim: int, dim: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.activation = activation
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear_2(self.activation(self.linear_1(x)))
        return result


class CaptionProjection(TwoLayerPerceptron):
    """Text encoder states to the transformer's width."""

    def __init__(self, caption_channels: int, dim: int) -> None:
        super().__init__(caption_channels, dim, nn.GELU(approximate="tanh"))


class _ScalarEmbedder(TwoLayerPerceptron):
    """A number per sample, as sinusoids, to the transformer's width."""

    def __init__(self, dim: int) -> None:
        super().__init__(_SINUSOID_CHANNELS, dim, nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(sinusoidal_embedding(x).to(self.linear_1.weight.dtype))


class _TimestepEmbeddings(nn.Module):
    """Holds the timestep embedder at the depth where checkpoints without guidance have it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.timestep_embedder = _ScalarEmbedder(dim)


class TimeEmbedding(nn.Module):
    """Timesteps to the input of every adaptive norm (PixArt-alpha, arXiv:2310.00426)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.emb = _TimestepEmbeddings(dim)
        self.linear = nn.Linear(dim, 6 * dim)

    def forward(self, timesteps: Tensor, guidance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Timesteps [N] to modulation [N, 6, D] and embedding [N, D].

        Raises ValueError when given a guidance that these weights cannot read.
        """
        if guidance is not None:
            raise ValueError("guidance: this transformer has no guidance embedding")
        embedded = self.emb.timestep_embedder(timesteps)
        return self.linear(F.silu(embedded)).unflatten(-1, (6, -1)), embedded


class TimeGuidanceEmbedding(nn.Module):
    """Like `TimeEmbedding`, for models distilled to take the guidance scale as an input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.timestep_embedder = _ScalarEmbedder(dim)
        self.guidance_embedder = _ScalarEmbedder(dim)
        self.linear = nn.Linear(dim, 6 * dim)

    def forward(self, timesteps: Tensor, guidance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Timesteps [N] and guidance [N] to modulation [N, 6, D] and embedding [N, D].

        Raises ValueError when the guidance is missing.
        """
        if guidance is None:
            raise ValueError("guidance: this transformer needs a guidance scale per timestep")
        embedded = self.timestep_embedder(timesteps) + self.guidance_embedder(guidance)
        return self.linear(F.silu(embedded)).unflatten(-1, (6, -1)), embedded
