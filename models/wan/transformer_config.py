"""The shape of a Wan-VACE transformer: read from `config.json` or inferred from its tensors.

GGUF files store no hyper-parameters, so the shapes of their tensors, under the names of the
original release, have to tell everything. A frozen `WanVaceConfig` goes out; `expected_shapes` says
which tensors a model of that configuration has. Imports no tensor library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from models.errors import CheckpointError, UnsupportedCheckpoint

HEAD_DIM = 128
"""Channels of an attention head in every model published so far; no tensor tells it."""

TEXT_LEN = 512
"""Text tokens of every model published so far; no tensor tells it either."""

_CLASS_NAME = "WanVACETransformer3DModel"

_INTEGERS = {
    "num_attention_heads": "num_heads",
    "attention_head_dim": "head_dim",
    "in_channels": "in_channels",
    "text_dim": "text_dim",
    "text_len": "text_len",
    "freq_dim": "freq_dim",
    "ffn_dim": "ffn_dim",
    "num_layers": "num_layers",
    "vace_in_channels": "vace_in_channels",
}
# Switches of the class that this code computes in one way only.
_FIXED: Mapping[str, Any] = {
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}


@dataclass(frozen=True)
class WanVaceConfig:
    """Sizes of a Wan 2.1 transformer with VACE blocks (arXiv:2503.20314, arXiv:2503.07598).

    The defaults are the published 14B model. `vace_layers` are the trunk blocks that receive a
    hint, the first always 0; `patch_size` is frames, rows and columns of latents in a token.
    `text_len` is the number of text tokens attended to, zeros where a prompt is shorter.
    """

    num_heads: int = 40
    head_dim: int = HEAD_DIM
    ffn_dim: int = 13824
    num_layers: int = 40
    vace_layers: tuple[int, ...] = (0, 5, 10, 15, 20, 25, 30, 35)
    in_channels: int = 16
    out_channels: int = 16
    vace_in_channels: int = 96
    text_dim: int = 4096
    text_len: int = TEXT_LEN
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    @property
    def dim(self) -> int:
        """Channels of a token inside the transformer."""
        return self.num_heads * self.head_dim

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Read a parsed `transformer/config.json` of diffusers' WanVACETransformer3DModel.

        One key is our own: `text_len`, 512 where it is not given. Raises UnsupportedCheckpoint,
        naming the key, for another class of model, an unknown key, a value of the wrong kind, and a
        variant that this code does not compute.
        """
        class_name = config.get("_class_name", _CLASS_NAME)
        if class_name != _CLASS_NAME:
            raise UnsupportedCheckpoint(f"_class_name is {class_name!r}, expected {_CLASS_NAME!r}")
        values: dict[str, Any] = {}
        for key, value in config.items():
            # The table of positions is made to the length that is needed.
            if key.startswith("_") or key == "rope_max_seq_len":
                continue
            if key in _FIXED:
                if value != _FIXED[key]:
                    raise UnsupportedCheckpoint(f"{key} is {value!r}, supported: {_FIXED[key]!r}")
            elif key in _INTEGERS:
                values[_INTEGERS[key]] = _positive(key, value)
            elif key == "out_channels":
                given = config.get("in_channels", cls.in_channels) if value is None else value
                values[key] = _positive(key, given)
            elif key in ("patch_size", "vace_layers"):
                values[key] = _integers(key, value)
            elif key == "eps":
                values[key] = _small(key, value)
            else:
                raise UnsupportedCheckpoint(f"{key}: unknown option {value!r}")
        result = cls(**values)
        _check_patch_size(result.patch_size)
        _check_vace_layers(result.vace_layers, result.num_layers)
        _check_head_dim(result.head_dim)
        return result


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> WanVaceConfig:
    """The configuration of a model whose tensors, under their original names, have these shapes.

    Raises UnsupportedCheckpoint when they belong to another model of the family (without VACE
    blocks, without a trunk, with image conditioning) and CheckpointError when they fit no model:
    both name the tensor, what was found and what was expected. Shapes that this does not look at
    are compared by `expected_shapes`.
    """
    if "blocks.0.self_attn.q.weight" not in shapes:
        found = "VACE blocks only" if "vace_blocks.0.after_proj.weight" in shapes else "no trunk"
        raise UnsupportedCheckpoint(
            f"{found}: tensor 'blocks.0.self_attn.q.weight' is missing, "
            "expected a whole transformer"
        )
    if "vace_blocks.0.after_proj.weight" not in shapes:
        raise UnsupportedCheckpoint(
            "a Wan transformer without VACE: tensor 'vace_blocks.0.after_proj.weight' is missing"
        )
    if "blocks.0.cross_attn.k_img.weight" in shapes:
        raise UnsupportedCheckpoint(
            "tensor 'blocks.0.cross_attn.k_img.weight': image conditioning is not supported"
        )
    dim = _dimensions(shapes, "blocks.0.self_attn.q.weight", 2)[0]
    if dim % HEAD_DIM:
        raise CheckpointError(
            f"tensor 'blocks.0.self_attn.q.weight' has {dim} rows, "
            f"expected a multiple of {HEAD_DIM}, the width of a head"
        )
    num_layers = _count(shapes, "blocks")
    num_vace_layers = _count(shapes, "vace_blocks")
    if num_vace_layers > num_layers or num_layers % num_vace_layers:
        raise CheckpointError(
            f"found {num_vace_layers} VACE blocks and {num_layers} blocks, "
            "expected one for every so many"
        )
    patch = _kernel(shapes, "patch_embedding.weight", dim)
    patch_size = (patch[2], patch[3], patch[4])
    _check_patch_size(patch_size)
    head = _dimensions(shapes, "head.head.weight", 2)[0]
    places = math.prod(patch_size)
    if head % places:
        raise CheckpointError(
            f"tensor 'head.head.weight' has {head} rows, expected a multiple of {places}, "
            "the latents of a token"
        )
    return WanVaceConfig(
        num_heads=dim // HEAD_DIM,
        ffn_dim=_dimensions(shapes, "blocks.0.ffn.0.weight", 2)[0],
        num_layers=num_layers,
        vace_layers=tuple(range(0, num_layers, num_layers // num_vace_layers)),
        in_channels=patch[1],
        out_channels=head // places,
        vace_in_channels=_kernel(shapes, "vace_patch_embedding.weight", dim)[1],
        text_dim=_dimensions(shapes, "text_embedding.0.weight", 2)[1],
        freq_dim=_dimensions(shapes, "time_embedding.0.weight", 2)[1],
        patch_size=patch_size,
    )


def expected_shapes(config: WanVaceConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model, under the names of the original release."""
    dim, ffn_dim = config.dim, config.ffn_dim
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, columns: int, rows: int) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        shapes[f"{name}.bias"] = (rows,)

    for name, channels in (
        ("patch_embedding", config.in_channels),
        ("vace_patch_embedding", config.vace_in_channels),
    ):
        shapes[f"{name}.weight"] = (dim, channels, *config.patch_size)
        shapes[f"{name}.bias"] = (dim,)
    linear("text_embedding.0", config.text_dim, dim)
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", config.freq_dim, dim)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", dim, 6 * dim)
    trunk = [f"blocks.{index}" for index in range(config.num_layers)]
    vace = [f"vace_blocks.{index}" for index in range(len(config.vace_layers))]
    for block in trunk + vace:
        shapes[f"{block}.modulation"] = (1, 6, dim)
        for attention in ("self_attn", "cross_attn"):
            for part in ("q", "k", "v", "o"):
                linear(f"{block}.{attention}.{part}", dim, dim)
            for part in ("norm_q", "norm_k"):
                shapes[f"{block}.{attention}.{part}.weight"] = (dim,)
        shapes[f"{block}.norm3.weight"] = (dim,)
        shapes[f"{block}.norm3.bias"] = (dim,)
        linear(f"{block}.ffn.0", dim, ffn_dim)
        linear(f"{block}.ffn.2", ffn_dim, dim)
    linear("vace_blocks.0.before_proj", dim, dim)
    for block in vace:
        linear(f"{block}.after_proj", dim, dim)
    shapes["head.modulation"] = (1, 2, dim)
    linear("head.head", dim, math.prod(config.patch_size) * config.out_channels)
    return shapes


def unfolded(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes `found`; the `expected` one instead where a converter has folded that.

    ggml knows four dimensions and drops leading ones: a modulation of [1, 6, D] may be stored as
    [6, D], the kernel [D, C, 1, 2, 2] of an embedding as [D * C, 1, 2, 2]. Their numbers lie in the
    same order.
    """
    return {
        name: expected[name]
        if name in expected and shape in _folded(name, expected[name])
        else shape
        for name, shape in found.items()
    }


def _folded(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    if name.endswith(".modulation"):
        return (shape[1:],)
    if name.endswith("patch_embedding.weight"):
        return ((shape[0] * shape[1], *shape[2:]),)
    return ()


def _kernel(shapes: Mapping[str, tuple[int, ...]], name: str, dim: int) -> tuple[int, ...]:
    """The shape of an embedding's kernel, `dim` rows, as it is when nothing is folded."""
    shape = shapes.get(name, ())
    if len(shape) == 4 and min(shape) > 0 and shape[0] % dim == 0:
        return dim, shape[0] // dim, *shape[1:]
    return _dimensions(shapes, name, 5)


def _count(shapes: Mapping[str, tuple[int, ...]], stem: str) -> int:
    """How many blocks there are, by a tensor that every block has."""
    count = 0
    while f"{stem}.{count}.modulation" in shapes:
        count += 1
    if count == 0:
        raise CheckpointError(f"tensor '{stem}.0.modulation' is missing")
    return count


def _dimensions(
    shapes: Mapping[str, tuple[int, ...]], name: str, dimensions: int
) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(f"tensor {name!r} is missing")
    if len(shape) != dimensions or min(shape) < 1:
        raise CheckpointError(
            f"tensor {name!r} has shape {list(shape)}, expected {dimensions} dimensions"
        )
    return shape


def _positive(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedCheckpoint(f"{key} is {value!r}, expected a positive integer")
    return value


def _integers(key: str, value: Any) -> tuple[int, ...]:
    is_list = isinstance(value, list | tuple)
    if not is_list or not value or any(type(item) is not int or item < 0 for item in value):
        raise UnsupportedCheckpoint(f"{key} is {value!r}, expected a list of integers")
    return tuple(value)


def _small(key: str, value: Any) -> float:
    if not isinstance(value, float) or not 0 < value < 1:
        raise UnsupportedCheckpoint(f"{key} is {value!r}, expected a number between 0 and 1")
    return value


def _check_patch_size(patch_size: tuple[int, ...]) -> None:
    if len(patch_size) != 3 or patch_size[0] != 1 or min(patch_size) < 1:
        raise UnsupportedCheckpoint(
            f"patch_size is {list(patch_size)}, supported: one frame by rows by columns"
        )


def _check_vace_layers(layers: tuple[int, ...], num_layers: int) -> None:
    if layers[0] != 0 or list(layers) != sorted(set(layers)) or layers[-1] >= num_layers:
        raise UnsupportedCheckpoint(
            f"vace_layers is {list(layers)}, expected rising numbers from 0 "
            f"to less than {num_layers}, the number of blocks"
        )


def _check_head_dim(head_dim: int) -> None:
    if head_dim % 2:
        raise UnsupportedCheckpoint(f"attention_head_dim is {head_dim}, expected an even number")
