"""The shape of a Sana transformer, read from the `config.json` that lies beside its weights.

A checkpoint's JSON comes in, a frozen `SanaTransformerConfig` goes out; whatever this code cannot
compute faithfully is refused here, before any weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from models.errors import UnsupportedCheckpoint

_CLASS_NAME = "SanaTransformer2DModel"
_QK_NORMS = (None, "rms_norm_across_heads")


@dataclass(frozen=True)
class SanaTransformerConfig:
    """Sizes and switches of a Sana linear diffusion transformer (Xie et al., arXiv:2410.10629).

    Fields carry the names of the published `transformer/config.json`; the defaults are those of
    that format. Lengths are in latent pixels (`sample_size`, `patch_size`) or channels.
    `timestep_scale` and `guidance_embeds_scale` are not applied by the transformer: they say by
    what a caller multiplies a timestep in 0..1000 and a guidance scale before embedding them.
    """

    in_channels: int = 32
    out_channels: int = 32
    num_attention_heads: int = 70
    attention_head_dim: int = 32
    num_layers: int = 20
    num_cross_attention_heads: int = 20
    cross_attention_head_dim: int = 112
    caption_channels: int = 2304
    mlp_ratio: float = 2.5
    attention_bias: bool = False
    sample_size: int = 32
    patch_size: int = 1
    norm_eps: float = 1e-6
    interpolation_scale: float | None = None
    guidance_embeds: bool = False
    guidance_embeds_scale: float = 0.1
    qk_norm: str | None = None
    timestep_scale: float = 1.0

    @property
    def inner_dim(self) -> int:
        """Channels of a token inside the transformer."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Read a parsed `transformer/config.json`.

        Raises UnsupportedCheckpoint, naming the key, for another class of model, a key that is not
        known here, a value of the wrong kind, and a variant that this code does not compute.
        """
        class_name = config.get("_class_name", _CLASS_NAME)
        if class_name != _CLASS_NAME:
            raise UnsupportedCheckpoint(f"_class_name is {class_name!r}, expected {_CLASS_NAME!r}")
        values = {key: value for key, value in config.items() if not key.startswith("_")}
        # Dropout is a matter of training alone.
        values.pop("dropout", None)
        if values.pop("norm_elementwise_affine", False):
            raise UnsupportedCheckpoint("norm_elementwise_affine: affine norms are not supported")
        cross_attention_dim = values.pop("cross_attention_dim", 2240)
        if values.get("out_channels", 0) is None:
            values["out_channels"] = values.get("in_channels", cls.in_channels)
        known = {field.name: str(field.type) for field in fields(cls)}
        for key, value in values.items():
            if key not in known:
                raise UnsupportedCheckpoint(f"{key}: unknown option {value!r}")
            _check(key, value, known[key])
        result = cls(**values)
        if result.qk_norm not in _QK_NORMS:
            raise UnsupportedCheckpoint(
                f"qk_norm is {result.qk_norm!r}, expected one of {_QK_NORMS}"
            )
        cross_dim = result.num_cross_attention_heads * result.cross_attention_head_dim
        for key, value in (
            ("cross_attention_dim", cross_attention_dim),
            ("num_cross_attention_heads x cross_attention_head_dim", cross_dim),
        ):
            if value != result.inner_dim:
                raise UnsupportedCheckpoint(f"{key} is {value}, expected {result.inner_dim}")
        if result.interpolation_scale is not None and result.inner_dim % 4:
            raise UnsupportedCheckpoint(
                f"{result.inner_dim} channels are not divisible by 4, as position embeddings need"
            )
        return result


def _check(key: str, value: object, kind: str) -> None:
    """Raise UnsupportedCheckpoint unless `value` is of `kind` (a type as written above)."""
    if value is None and "None" in kind:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "int": isinstance(value, int) and is_number and value > 0,
        "float": is_number and 0 < float(value) < float("inf"),  # type: ignore[arg-type]
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
    }
    if not fits[kind.removesuffix(" | None")]:
        wanted = {"int": "a positive integer", "float": "a positive number"}
        expected = wanted.get(kind.removesuffix(" | None"), kind)
        raise UnsupportedCheckpoint(f"{key} is {value!r}, expected {expected}")
