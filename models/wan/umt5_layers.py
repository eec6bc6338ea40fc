"""The UMT5 encoder as a torch module: token embeddings in, last hidden states out.

One text at a time, without batch or padding: [T, D] embeddings become [T, D] hidden states.
Parameters are named as in the published checkpoints. References: Raffel et al., T5,
arXiv:1910.10683 (relative position bias, attention without scaling); Shazeer, arXiv:2002.05202
(gated GELU); Chung et al., UniMax, arXiv:2304.09151, for UMT5, which differs from T5 in that every
layer has a position bias of its own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.wan.umt5_config import Umt5Config


class RMSNorm(nn.Module):
    """Root mean square norm in float32, scaled by the weight, in the dtype of its input."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


class Attention(nn.Module):
    """Self-attention over the whole text; scores are unscaled and shifted by position."""

    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.d_kv = config.d_kv
        inner = config.num_heads * config.d_kv
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.relative_attention_bias = nn.Embedding(
            config.relative_attention_num_buckets, config.num_heads
        )

    def forward(self, x: Tensor, buckets: Tensor) -> Tensor:
        """[T, D] to the same; `buckets` [T, T] are those of `position_buckets`."""
        query, key, value = (self._heads(layer(x)) for layer in (self.q, self.k, self.v))
        bias = self.relative_attention_bias.weight.t()[:, buckets].to(x.dtype)
        # The softmax inside is float32 for all dtypes.
        mixed = F.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=bias[None], scale=1.0
        )
        out: Tensor = self.o(mixed[0].transpose(0, 1).flatten(1))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_kv)).transpose(0, 1)


class GatedFeedForward(nn.Module):
    """Feed-forward with a tanh-approximated GELU gate."""

    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))
        return out


class AttentionLayer(nn.Module):
    """Attention behind a norm, added to its input."""

    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.SelfAttention = Attention(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, buckets: Tensor) -> Tensor:
        out: Tensor = x + self.SelfAttention(self.layer_norm(x), buckets)
        return out


class FeedForwardLayer(nn.Module):
    """Feed-forward behind a norm, added to its input."""

    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.DenseReluDense = GatedFeedForward(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.DenseReluDense(self.layer_norm(x))
        return out


class Block(nn.Module):
    """One layer of the stack: attention, then feed-forward."""

    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config), FeedForwardLayer(config)])

    def forward(self, x: Tensor, buckets: Tensor) -> Tensor:
        out: Tensor = self.layer[1](self.layer[0](x, buckets))
        return out


class Stack(nn.Module):
    """All blocks and the last norm."""

    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, buckets: Tensor) -> Tensor:
        for block in self.block:
            x = block(x, buckets)
        out: Tensor = self.final_layer_norm(x)
        return out


class Umt5(nn.Module):
    """The encoder without its embedding table, for float32 or bfloat16 weights.

    Large models overflow float16 in the feed-forward of their later layers.
    """

    def __init__(self, config: Umt5Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = Stack(config)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Last hidden states [T, D] of token embeddings [T, D]."""
        buckets = position_buckets(
            len(embeddings),
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
        )
        out: Tensor = self.encoder(embeddings, buckets.to(embeddings.device))
        return out


def position_buckets(length: int, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket 0..num_buckets - 1 of each pair of a query (row) and a key (column): [length, length].

    Half of the buckets are for keys that come after the query. Of each half, the first half is one
    for every distance and the rest grow logarithmically up to `max_distance`, beyond which all
    share the last.
    """
    half = num_buckets // 2
    exact = half // 2
    positions = torch.arange(length)
    offset = positions[None, :] - positions[:, None]
    distance = offset.abs()
    # On the CPU and in float32, where every implementation rounds the borders the same way.
    growth = torch.log(distance.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    distant = exact + (growth * (half - exact)).long()
    bucket = torch.where(distance < exact, distance, distant.clamp(max=half - 1))
    return bucket + half * (offset > 0)
