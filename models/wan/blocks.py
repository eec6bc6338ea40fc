"""The layers of a Wan transformer: self-attention with rotary positions, text attention, MLP.

Activations are tokens [batch, tokens, channels]. They stay in the dtype of the weights between
layers; norms, rotations and modulation are float32 inside. Parameter names are those of the
original release.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.wan.rope import rotate


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over channels with float32 `weight` and `bias` [D]; dtype and shape of `x`."""
    if x.device.type != "cpu":
        # Only the kernel of the CPU takes an affine part of another type.
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def modulated_layer_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """`layer_norm(x) * (1 + scale) + shift` for x [B, N, D] and float32 shift, scale [B or 1, D].

    Follows Peebles & Xie, arXiv:2212.09748. When the whole batch shares one modulation, the norm
    applies it by itself.
    """
    scale = scale + 1
    if len(scale) == 1:
        return layer_norm(x, scale[0], shift[0], eps)
    normed = F.layer_norm(x, x.shape[-1:], eps=eps)
    return torch.addcmul(shift.to(x.dtype)[:, None], normed, scale.to(x.dtype)[:, None])


def add_gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """`x + gate * update` for x, update [B, N, D] and gate [B or 1, D]."""
    return torch.addcmul(x, gate.to(x.dtype)[:, None], update)


class RMSNorm(nn.Module):
    """Root mean square norm over all heads' channels (Zhang & Sennrich, arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] of any dtype to float32."""
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps)


class SelfAttention(nn.Module):
    """Softmax attention among all tokens of a clip: [B, N, D] to [B, N, D]."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """`table` comes from `rope.rotations`."""
        query = rotate(self.norm_q(self.q(x)).unflatten(-1, (self.heads, -1)), table).to(x.dtype)
        key = rotate(self.norm_k(self.k(x)).unflatten(-1, (self.heads, -1)), table).to(x.dtype)
        value = self.v(x).unflatten(-1, (self.heads, -1))
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        result: Tensor = self.o(out.transpose(1, 2).flatten(2))
        return result


class CrossAttention(nn.Module):
    """Softmax attention from a clip's tokens to text, whose keys and values come precomputed."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def project_text(self, text: Tensor) -> Tensor:
        """Keys and values [B, 2, T, H, d] of text tokens [B, T, D].

        Called once per prompt, and not through the block: where the block's weights rest in host
        memory between its calls, this runs on the host.
        """
        device = text.device
        text = text.to(self.norm_k.weight.device)
        key = self.norm_k(self.k(text)).to(text.dtype)
        key_value = torch.stack((key, self.v(text)), dim=1).unflatten(-1, (self.heads, -1))
        return key_value.to(device)

    def forward(self, x: Tensor, key_value: Tensor, bias: Tensor) -> Tensor:
        query = self.norm_q(self.q(x)).to(x.dtype).unflatten(-1, (self.heads, -1))
        key, value = key_value.transpose(2, 3).unbind(1)
        out = F.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=bias)
        result: Tensor = self.o(out.transpose(1, 2).flatten(2))
        return result


class _Block(nn.Module):
    """What both kinds of block compute; see `WanBlock` for the arguments."""

    def __init__(self, dim: int, ffn_dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.self_attn = SelfAttention(dim, heads, eps)
        self.cross_attn = CrossAttention(dim, heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.empty(1, 6, dim).normal_(std=dim**-0.5))

    def _transform(
        self, x: Tensor, modulation: Tensor, key_value: Tensor, bias: Tensor, table: Tensor
    ) -> Tensor:
        shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = (
            self.modulation.float() + modulation
        ).unbind(1)
        normed = modulated_layer_norm(x, shift_attn, scale_attn, self.eps)
        x = add_gated(x, gate_attn, self.self_attn(normed, table))
        normed = layer_norm(x, self.norm3.weight, self.norm3.bias, self.eps)
        x = x + self.cross_attn(normed, key_value, bias)
        normed = modulated_layer_norm(x, shift_ffn, scale_ffn, self.eps)
        return add_gated(x, gate_ffn, self.ffn(normed))


class WanBlock(_Block):
    """Modulated self-attention, text attention and modulated MLP, each with a residual."""

    def forward(
        self, x: Tensor, modulation: Tensor, key_value: Tensor, bias: Tensor, table: Tensor
    ) -> Tensor:
        """Tokens [B, N, D] to the same shape.

        `modulation` [B or 1, 6, D], float32, is the embedded time: shift, scale and gate of the
        self-attention, then those of the MLP. `key_value` [B, 2, T, H, d] and `bias` [B, 1, 1, T]
        are one layer of a `TextConditioning`, `table` comes from `rope.rotations`.
        """
        return self._transform(x, modulation, key_value, bias, table)


class VaceBlock(_Block):
    """A block beside the trunk that works on the context and hands the trunk a hint.

    Follows Jiang et al., VACE, arXiv:2503.07598. Only the first one has `before_proj`, which mixes
    the context with the tokens of the clip.
    """

    def __init__(self, dim: int, ffn_dim: int, heads: int, eps: float, *, is_first: bool) -> None:
        super().__init__(dim, ffn_dim, heads, eps)
        self.before_proj = nn.Linear(dim, dim) if is_first else None
        self.after_proj = nn.Linear(dim, dim)

    def forward(
        self,
        context: Tensor,
        x: Tensor,
        modulation: Tensor,
        key_value: Tensor,
        bias: Tensor,
        table: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The context for the next such block and the hint, each [B, N, D] as `context` is.

        `x` are the tokens of the clip before the first block of the trunk; only the first block
        looks at them. The rest is as for `WanBlock`.
        """
        if self.before_proj is not None:
            context = self.before_proj(context) + x
        context = self._transform(context, modulation, key_value, bias, table)
        return context, self.after_proj(context)
