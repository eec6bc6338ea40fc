"""The layers of a Sana transformer: linear self-attention, text cross-attention, gated convolution.

Activations are tokens [batch, height * width, channels] from block to block; the depthwise
convolution sees them as a channels-last picture, which is the same memory. Parameter names are
those of the published checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FLOAT16_MAX = 65504.0
_RMS_NORM_EPS = 1e-5


def modulated_layer_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """`layer_norm(x) * scale + shift` for x [B, N, D] and shift, scale [B or 1, 1, D].

    `scale` already contains the one that adaptive layer norm adds (Peebles & Xie,
    arXiv:2212.09748). When the whole batch shares one modulation, the norm applies it by itself.
    """
    if scale.shape[0] == 1:
        return F.layer_norm(x, x.shape[-1:], scale.flatten(), shift.flatten(), eps)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), scale)


class RMSNorm(nn.Module):
    """Root mean square norm over channels (Zhang & Sennrich, arXiv:1910.07467), eps 1e-5."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast the weight stays float32 while activations are not.
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), _RMS_NORM_EPS)


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """ReLU linear attention (Katharopoulos et al., arXiv:2006.16236) over all tokens.

    All arguments have shape [B, N, H, d]; returns [B, N, H * d] in the dtype of `query`. Sums run
    in float32, unless autocast says otherwise: they add up N products that no softmax bounds.
    """
    q = _float32_heads(query).relu_()
    k = _float32_heads(key).relu_()
    v = _float32_heads(value)
    # One column more than d: the sum of the keys, by which every query's weights are normalised.
    context = torch.cat((torch.matmul(k.transpose(2, 3), v), k.sum(dim=2).unsqueeze(-1)), dim=-1)
    out = torch.matmul(q, context)
    out = out[..., :-1] / (out[..., -1:] + 1e-15)
    return out.to(query.dtype).transpose(1, 2).flatten(2)


def _float32_heads(x: Tensor) -> Tensor:
    """A packed float32 copy [B, H, N, d] of x [B, N, H, d]: cast and transposed in one pass."""
    return x.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format, copy=True)


class SelfAttention(nn.Module):
    """Linear self-attention with its projections: [B, N, D] to [B, N, D]."""

    def __init__(self, dim: int, heads: int, *, bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(dim, dim, bias=bias)
        self.to_v = nn.Linear(dim, dim, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = RMSNorm(dim) if qk_norm else nn.Identity()
        self.norm_k = RMSNorm(dim) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        query = self.norm_q(self.to_q(x)).unflatten(-1, (self.heads, -1))
        key = self.norm_k(self.to_k(x)).unflatten(-1, (self.heads, -1))
        value = self.to_v(x).unflatten(-1, (self.heads, -1))
        out: Tensor = self.to_out[0](linear_attention(query, key, value))
        if out.dtype == torch.float16:
            # float16 overflows here with the released weights; saturating is what they expect.
            out = out.clip(-_FLOAT16_MAX, _FLOAT16_MAX)
        return out


class CrossAttention(nn.Module):
    """Softmax attention from picture tokens to text, whose keys and values come precomputed."""

    def __init__(self, dim: int, heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = RMSNorm(dim) if qk_norm else nn.Identity()
        self.norm_k = RMSNorm(dim) if qk_norm else nn.Identity()

    def project_text(self, text: Tensor) -> Tensor:
        """Keys and values [B, 2, T, H, d] of text tokens [B, T, D]."""
        key_value = torch.stack((self.norm_k(self.to_k(text)), self.to_v(text)), dim=1)
        return key_value.unflatten(-1, (self.heads, -1))

    def forward(self, x: Tensor, key_value: Tensor, bias: Tensor | None) -> Tensor:
        query = self.norm_q(self.to_q(x)).unflatten(-1, (self.heads, -1))
        key, value = key_value.unbind(1)
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=bias
        )
        result: Tensor = self.to_out[0](out.transpose(1, 2).flatten(2))
        return result


class GatedConvolution(nn.Module):
    """Sana's Mix-FFN: expand, 3x3 depthwise convolution, SiLU gate, contract; tokens to tokens."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = int(ratio * dim)
        self.conv_inverted = nn.Conv2d(dim, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, dim, 1, bias=False)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        # A 1x1 convolution over tokens is a linear layer.
        x = F.linear(x, self.conv_inverted.weight.flatten(1), self.conv_inverted.bias)
        # The widest activation of the model: overwritten, unless a backward pass will want it.
        x = F.silu(x, inplace=not torch.is_grad_enabled())
        picture = x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        x = self.conv_depth(picture).permute(0, 2, 3, 1).flatten(1, 2)
        value, gate = x.chunk(2, dim=-1)
        return F.linear(value * F.silu(gate), self.conv_point.weight.flatten(1))


class SanaBlock(nn.Module):
    """Modulated linear attention, text cross-attention, modulated Mix-FFN, each with a residual."""

    def __init__(
        self,
        dim: int,
        heads: int,
        cross_heads: int,
        *,
        mlp_ratio: float,
        attention_bias: bool,
        qk_norm: bool,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.norm_eps = norm_eps
        self.attn1 = SelfAttention(dim, heads, bias=attention_bias, qk_norm=qk_norm)
        self.attn2 = CrossAttention(dim, cross_heads, qk_norm=qk_norm)
        self.ff = GatedConvolution(dim, mlp_ratio)
        self.scale_shift_table = nn.Parameter(torch.empty(6, dim).normal_(std=dim**-0.5))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        key_value: Tensor,
        bias: Tensor | None,
        height: int,
        width: int,
    ) -> Tensor:
        """Tokens [B, height * width, D] to the same shape.

        `modulation` [6, B or 1, 1, D] holds shift, scale (one already added) and gate of the
        self-attention, then those of the Mix-FFN; `key_value` [B, 2, T, H, d] comes from
        `attn2.project_text`, `bias` [B, 1, 1, T] or None is added to the attention scores.
        """
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = modulation.unbind(0)
        attended = self.attn1(modulated_layer_norm(x, shift_attn, scale_attn, self.norm_eps))
        x = torch.addcmul(x, gate_attn, attended)
        x = x + self.attn2(x, key_value, bias)
        normed = modulated_layer_norm(x, shift_ff, scale_ff, self.norm_eps)
        return torch.addcmul(x, gate_ff, self.ff(normed, height, width))
