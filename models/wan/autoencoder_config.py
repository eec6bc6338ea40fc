"""The shape of Wan's causal video autoencoder, read from the `config.json` beside its weights.

A parsed JSON object comes in, a frozen `WanAutoencoderConfig` goes out; a file in the original
layout has no configuration, and `infer_config` reads it from the shapes of its tensors. Options
that this code does not compute are refused here, before any weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from models.errors import UnsupportedCheckpoint

# Measured by the authors over the latents of real clips, one number for each channel.
_MEAN: tuple[float, ...] = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
_MEAN += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
_STD: tuple[float, ...] = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
_STD += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


@dataclass(frozen=True)
class WanAutoencoderConfig:
    """Shape of the autoencoder, with the keys and defaults of diffusers' `config.json`.

    `dim_mult` are the widths of the levels, from pixels to latents, in units of `base_dim`;
    `temperal_downsample` (their spelling) says which steps between levels halve time as well.
    `latents_mean` and `latents_std` bring latents to zero mean and unit variance.
    """

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = _MEAN
    latents_std: tuple[float, ...] = _STD

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> WanAutoencoderConfig:
        """Read a parsed `vae/config.json` of diffusers' AutoencoderKLWan.

        Raises UnsupportedCheckpoint naming the key for a value or a key that would change the
        result and is not supported.
        """
        class_name = config.get("_class_name", "AutoencoderKLWan")
        if class_name != "AutoencoderKLWan":
            raise UnsupportedCheckpoint(
                f"_class_name is {class_name!r}, expected 'AutoencoderKLWan'"
            )
        fixed = {
            "attn_scales": [],
            "dropout": 0.0,
            "is_residual": False,
            "in_channels": 3,
            "out_channels": 3,
            "patch_size": None,
            "scale_factor_temporal": 4,
            "scale_factor_spatial": 8,
            "clip_output": True,
            "decoder_base_dim": None,
        }
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in config.items():
            if key in known:
                values[key] = tuple(value) if isinstance(value, list | tuple) else value
            elif not key.startswith("_") and (key not in fixed or value != fixed[key]):
                wanted = repr(fixed[key]) if key in fixed else "no such option"
                raise UnsupportedCheckpoint(f"{key} is {value!r}, supported: {wanted}")
        built = cls(**values)
        built._check()
        return built

    def _check(self) -> None:
        for key in ("base_dim", "z_dim", "num_res_blocks"):
            _expect(key, getattr(self, key), lambda value: type(value) is int and value > 0)
        _expect("dim_mult", self.dim_mult, lambda value: _all(value, int, 4) and min(value) > 0)
        _expect("temperal_downsample", self.temperal_downsample, lambda v: _all(v, bool, 3))
        if sum(self.temperal_downsample) != 2:
            raise UnsupportedCheckpoint(
                f"temperal_downsample is {list(self.temperal_downsample)}, expected two halvings"
            )
        if self.base_dim * min(self.dim_mult) % 2:
            raise UnsupportedCheckpoint(f"base_dim is {self.base_dim}, expected even widths")
        for key in ("latents_mean", "latents_std"):
            _expect(key, getattr(self, key), lambda value: _finite(value, self.z_dim))
        if min(self.latents_std) <= 0:
            raise UnsupportedCheckpoint("latents_std holds a number that is not positive")


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> WanAutoencoderConfig:
    """The configuration of an autoencoder whose tensors, under diffusers' names, have these shapes.

    Raises UnsupportedCheckpoint naming a tensor that is missing. Latent statistics are those of the
    release, since no tensor tells them.
    """
    widths: list[int] = []
    halvings: list[bool] = []
    blocks = 0
    index = 0
    base_dim = _shape(shapes, "encoder.conv_in.weight")[0]
    while any(name.startswith(f"encoder.down_blocks.{index}.") for name in shapes):
        stem = f"encoder.down_blocks.{index}"
        if f"{stem}.resample.1.weight" in shapes:
            halvings.append(f"{stem}.time_conv.weight" in shapes)
        else:
            width = _shape(shapes, f"{stem}.conv1.weight")[0]
            if len(widths) == len(halvings):
                widths.append(width)
            blocks += 1
        index += 1
    if not widths or blocks % len(widths) or any(width % base_dim for width in widths):
        raise UnsupportedCheckpoint(
            f"'encoder.down_blocks' has {blocks} residual blocks of widths {widths}, "
            f"expected equally many for each multiple of {base_dim}"
        )
    config = WanAutoencoderConfig(
        base_dim=base_dim,
        z_dim=_shape(shapes, "post_quant_conv.weight")[0],
        dim_mult=tuple(width // base_dim for width in widths),
        num_res_blocks=blocks // len(widths),
        temperal_downsample=tuple(halvings),
    )
    config._check()
    return config


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise UnsupportedCheckpoint(f"tensor {name!r} is missing, expected a Wan 2.1 autoencoder")
    return shapes[name]


def _expect(key: str, value: Any, is_good: Any) -> None:
    if not is_good(value):
        raise UnsupportedCheckpoint(f"{key} is {value!r}, which no Wan 2.1 autoencoder has")


def _all(values: Any, kind: type, count: int) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(type(value) is kind for value in values)
    )


def _finite(values: Any, count: int) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    )
