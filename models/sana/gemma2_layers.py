"""The Gemma-2 decoder as a torch module: token ids in, last hidden states and attention state out.

One text at a time, without batch or padding: [T] token ids become [T, D] hidden states. Parameters
are named as in the published checkpoints. Reference: Gemma Team, "Gemma 2: Improving Open Language
Models at a Practical Size" (arXiv:2408.00118): alternating sliding-window and full attention,
grouped queries, soft-capped scores, norms before and after each part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [key-value heads, T, head_dim], keys already rotated."""


@dataclass(frozen=True)
class Gemma2Config:
    """Shape of the decoder, with the keys of `config.json` and the values of Gemma-2-2B."""

    vocab_size: int = 256_000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    query_pre_attn_scalar: float = 256
    attn_logit_softcapping: float | None = 50.0
    sliding_window: int = 4096
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Gemma2Config:
        """Read `config.json`, as written before and after rotary settings got a table of their own.

        Raises ValueError naming the key for a value of the wrong kind or one that would change the
        computation and is not supported.
        """
        rope = config.get("rope_parameters") or {}
        if not isinstance(rope, Mapping):
            raise ValueError(f"rope_parameters is {rope!r}, must be an object")
        layers = config.get("num_hidden_layers", cls.num_hidden_layers)
        for key, value, supported in (
            ("hidden_activation", config.get("hidden_activation"), (None, "gelu_pytorch_tanh")),
            ("attention_bias", config.get("attention_bias"), (None, False)),
            ("rope_scaling", config.get("rope_scaling"), (None,)),
            ("rope_type", rope.get("rope_type"), (None, "default")),
            (
                "use_bidirectional_attention",
                config.get("use_bidirectional_attention"),
                (None, False),
            ),
            ("layer_types", config.get("layer_types"), (None, _alternating(layers))),
        ):
            if value not in supported:
                raise ValueError(f"{key} is {value!r}, supported: {supported[-1]!r}")
        values = {f.name: config[f.name] for f in fields(cls) if f.name in config}
        if "rope_theta" in rope:
            values["rope_theta"] = rope["rope_theta"]
        for name, value in values.items():
            is_optional = name == "attn_logit_softcapping" and value is None
            is_whole = isinstance(getattr(cls, name), int) and name != "query_pre_attn_scalar"
            kind = int if is_whole else (int, float)
            if not is_optional and (
                isinstance(value, bool) or not isinstance(value, kind) or value <= 0
            ):
                raise ValueError(f"{name} is {value!r}, must be a positive number")
        built = cls(**values)
        if built.num_attention_heads % built.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {built.num_attention_heads}, must be a multiple of "
                f"num_key_value_heads {built.num_key_value_heads}"
            )
        if built.head_dim % 2:
            raise ValueError(f"head_dim is {built.head_dim}, must be even")
        return built


def _alternating(layers: Any) -> list[str]:
    count = layers if isinstance(layers, int) else 0
    return ["full_attention" if i % 2 else "sliding_attention" for i in range(count)]


class RMSNorm(nn.Module):
    """Root mean square norm in float32, scaled by one plus the weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        weight = 1.0 + self.weight.float()
        return F.rms_norm(x.float(), x.shape[-1:], weight, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions and soft-capped scores."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scaling = config.query_pre_attn_scalar**-0.5
        self.softcap = config.attn_logit_softcapping
        inner = self.heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, rotation: State, is_hidden: Tensor, past: State | None
    ) -> tuple[Tensor, State]:
        """[T, D] to the same, and this layer's state with the `past` in front.

        `rotation` holds cosines and sines [T, head_dim]; `is_hidden` [T, P + T] is true where a
        query must not look.
        """
        query = _rotate(self._heads(self.q_proj(x)), rotation)
        key = _rotate(self._heads(self.k_proj(x)), rotation)
        value = self._heads(self.v_proj(x))
        if past is not None:
            key, value = torch.cat([past[0], key], dim=1), torch.cat([past[1], value], dim=1)
        groups = query.unflatten(0, (self.kv_heads, -1))
        scores = (groups @ key.transpose(1, 2).unsqueeze(1)).float() * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        weights = scores.masked_fill(is_hidden, float("-inf")).softmax(dim=-1).to(x.dtype)
        mixed = (weights @ value.unsqueeze(1)).flatten(0, 1)
        return self.o_proj(mixed.transpose(0, 1).flatten(1)), (key, value)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(0, 1)


class GatedMLP(nn.Module):
    """Feed-forward with a tanh-approximated GELU gate."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.gelu(self.gate_proj(x), approximate="tanh")
        out: Tensor = self.down_proj(gate * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each between two norms."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config)
        dim, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(dim, eps)
        self.post_attention_layernorm = RMSNorm(dim, eps)
        self.pre_feedforward_layernorm = RMSNorm(dim, eps)
        self.post_feedforward_layernorm = RMSNorm(dim, eps)

    def forward(
        self, x: Tensor, rotation: State, is_hidden: Tensor, past: State | None
    ) -> tuple[Tensor, State]:
        attended, state = self.self_attn(self.input_layernorm(x), rotation, is_hidden, past)
        x = x + self.post_attention_layernorm(attended)
        fed = self.mlp(self.pre_feedforward_layernorm(x))
        return x + self.post_feedforward_layernorm(fed), state


class Gemma2(nn.Module):
    """The decoder stack without its language-model head, for float32 or bfloat16 weights."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, token_ids: Tensor, past: Sequence[State] | None = None
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Last hidden states [T, D] of `token_ids` [T], and every layer's state from the start.

        `past` is the state, one entry a layer, of the P tokens that come before.
        """
        first = past[0][0].shape[1] if past else 0
        x = self.embed_tokens(token_ids)
        # The scale is rounded to the embeddings' dtype: the checkpoints were trained so.
        x = x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype)
        queries = torch.arange(first, first + len(token_ids), device=x.device)[:, None]
        keys = torch.arange(first + len(token_ids), device=x.device)
        is_future = keys > queries
        is_outside = is_future | (keys <= queries - self.config.sliding_window)
        rotation = self._rotation(queries, x.dtype)
        states: list[State] = []
        for index, layer in enumerate(self.layers):
            is_hidden = is_future if index % 2 else is_outside
            x, state = layer(x, rotation, is_hidden, past[index] if past else None)
            states.append(state)
        return self.norm(x), tuple(states)

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> State:
        exponents = torch.arange(0, self.config.head_dim, 2, device=positions.device)
        frequencies = self.config.rope_theta ** -(exponents.float() / self.config.head_dim)
        angles = (positions * frequencies).repeat(1, 2)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x: Tensor, rotation: State) -> Tensor:
    """Rotary position embedding (Su et al., arXiv:2104.09864) of [heads, T, head_dim]."""
    cosine, sine = rotation
    low, high = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-high, low], dim=-1) * sine
