"""The shape of a UMT5 encoder: read from `config.json` or inferred from its tensors.

Single files, GGUF or safetensors, bring no configuration, so the shapes of their tensors, under the
names of transformers, have to tell it. A frozen `Umt5Config` goes out; `expected_shapes` says which
tensors an encoder of that configuration has. Imports no tensor library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from models.errors import CheckpointError, UnsupportedCheckpoint

EMBEDDING = "shared.weight"
_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"

# Switches of the class that this code computes in one way only.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "feed_forward_proj": (None, "gated-gelu"),
    "dense_act_fn": (None, "gelu_new"),
    "is_gated_act": (None, True),
}


@dataclass(frozen=True)
class Umt5Config:
    """Sizes of the encoder, with the keys of `config.json` and the values of UMT5-XXL."""

    vocab_size: int = 256_384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10_240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Read a parsed `config.json` of UMT5 in transformers; keys it lacks have that class's
        value where all published models share it.

        Raises UnsupportedCheckpoint, naming the key, for another kind of model, a missing size, a
        value of the wrong kind, and a variant that this code does not compute.
        """
        if (found := config.get("model_type")) != "umt5":
            raise UnsupportedCheckpoint(f"model_type is {found!r}, supported: 'umt5'")
        for key, supported in _FIXED.items():
            if config.get(key) not in supported:
                raise UnsupportedCheckpoint(
                    f"{key} is {config[key]!r}, supported: {supported[-1]!r}"
                )
        values: dict[str, Any] = {}
        for field in fields(cls):
            has_common_value = field.name.startswith(("relative_", "layer_norm_"))
            value = config.get(field.name, field.default if has_common_value else None)
            kind = float if field.name == "layer_norm_epsilon" else int
            if type(value) is not kind or value <= 0:
                raise UnsupportedCheckpoint(
                    f"{field.name} is {value!r}, expected a positive {kind.__name__}"
                )
            values[field.name] = value
        return cls(**_checked(**values))


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> Umt5Config:
    """The configuration of an encoder whose tensors have these shapes.

    The distance of the last position bucket and the epsilon of the norms are those of all published
    models. Raises UnsupportedCheckpoint for T5, which has position biases in its first block alone,
    and CheckpointError naming a tensor that is missing or misshapen.
    """
    num_layers = 0
    while f"encoder.block.{num_layers}.layer.0.SelfAttention.q.weight" in shapes:
        num_layers += 1
    vocab_size, d_model = _matrix(shapes, EMBEDDING)
    attention_width, _ = _matrix(shapes, "encoder.block.0.layer.0.SelfAttention.q.weight")
    num_buckets, num_heads = _matrix(shapes, f"encoder.block.0.{_BIAS}")
    d_ff, _ = _matrix(shapes, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight")
    if num_layers > 1 and f"encoder.block.1.{_BIAS}" not in shapes:
        raise UnsupportedCheckpoint(
            "a T5 encoder, with a position bias in its first block alone, expected UMT5"
        )
    if attention_width % num_heads:
        raise CheckpointError(
            f"tensor 'encoder.block.0.layer.0.SelfAttention.q.weight' has {attention_width} rows, "
            f"expected a multiple of {num_heads}, the number of heads"
        )
    values = _checked(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=attention_width // num_heads,
        d_ff=d_ff,
        num_layers=num_layers,
        num_heads=num_heads,
        relative_attention_num_buckets=num_buckets,
    )
    return Umt5Config(**values)


def expected_shapes(config: Umt5Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an encoder."""
    width, inner, d_ff = config.d_model, config.num_heads * config.d_kv, config.d_ff
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, width)}
    for index in range(config.num_layers):
        block = f"encoder.block.{index}"
        for projection in ("q", "k", "v"):
            shapes[f"{block}.layer.0.SelfAttention.{projection}.weight"] = (inner, width)
        shapes[f"{block}.layer.0.SelfAttention.o.weight"] = (width, inner)
        shapes[f"{block}.{_BIAS}"] = (config.relative_attention_num_buckets, config.num_heads)
        shapes[f"{block}.layer.0.layer_norm.weight"] = (width,)
        shapes[f"{block}.layer.1.DenseReluDense.wi_0.weight"] = (d_ff, width)
        shapes[f"{block}.layer.1.DenseReluDense.wi_1.weight"] = (d_ff, width)
        shapes[f"{block}.layer.1.DenseReluDense.wo.weight"] = (width, d_ff)
        shapes[f"{block}.layer.1.layer_norm.weight"] = (width,)
    shapes["encoder.final_layer_norm.weight"] = (width,)
    return shapes


def _matrix(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    if (shape := shapes.get(name)) is None:
        raise CheckpointError(f"tensor {name!r} is missing, expected a UMT5 encoder")
    if len(shape) != 2 or min(shape) < 1:
        raise CheckpointError(f"tensor {name!r} has shape {list(shape)}, expected 2 dimensions")
    return shape[0], shape[1]


def _checked(**values: Any) -> dict[str, Any]:
    """The values, unless the distances between tokens cannot be told apart with so few buckets."""
    buckets = values["relative_attention_num_buckets"]
    distance = values.get("relative_attention_max_distance", 128)
    if buckets < 4 or buckets % 4 or distance <= buckets // 4:
        raise UnsupportedCheckpoint(
            f"relative_attention_num_buckets is {buckets} up to a distance of {distance}, "
            "supported: a multiple of 4 and less than 4 times the distance"
        )
    return values
