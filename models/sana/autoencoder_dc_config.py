"""The shape of a DC-AE autoencoder, read from the `config.json` beside its weights.

A parsed JSON object comes in, a frozen `AutoencoderDCConfig` goes out; options that this code does
not compute are refused here, before any weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

ACTIVATIONS = ("relu", "silu")
NORMS = ("rms_norm", "batch_norm")
BLOCKS = ("ResBlock", "EfficientViTBlock")
UPSAMPLERS = ("pixel_shuffle", "interpolate")


def _spread(value: Any, levels: int) -> tuple[Any, ...]:
    """One entry a level: a single name stands for all levels, a list is taken as it is."""
    return (value,) * levels if isinstance(value, str) else tuple(value)


@dataclass(frozen=True)
class AutoencoderDCConfig:
    """Shape of a DC-AE, with the keys and defaults of diffusers' `config.json`.

    Per-level tuples run from the picture (level 0) to the latents. `scaling_factor` is what the
    latents are multiplied by for the transformer to see them at unit variance.
    """

    in_channels: int = 3
    latent_channels: int = 32
    attention_head_dim: int = 32
    encoder_block_types: tuple[str, ...] = ("ResBlock",) * 6
    decoder_block_types: tuple[str, ...] = ("ResBlock",) * 6
    encoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    decoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    encoder_layers_per_block: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))
    decoder_qkv_multiscales: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))
    upsample_block_type: str = "pixel_shuffle"
    downsample_block_type: str = "pixel_unshuffle"
    decoder_norm_types: tuple[str, ...] = ("rms_norm",) * 6
    decoder_act_fns: tuple[str, ...] = ("silu",) * 6
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    decoder_conv_act_fn: str = "relu"
    scaling_factor: float = 1.0

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels to a latent along one side (32 for six levels)."""
        return int(2 ** (len(self.encoder_block_out_channels) - 1))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> AutoencoderDCConfig:
        """Read diffusers' `config.json`.

        Private keys (`_class_name`, ...) and the latents' `shift_factor` or mean when they change
        nothing are ignored. Raises ValueError naming the key for a value or a key that would
        change the result and is not supported.
        """
        known = {field.name for field in fields(cls)}
        values = {key: value for key, value in config.items() if key in known}
        for key, value in config.items():
            if key not in known and not key.startswith("_") and value not in (None, 0, 0.0, False):
                raise ValueError(f"DC-AE config: unknown key {key!r} with value {value!r}")
        for side in ("encoder", "decoder"):
            levels = len(values.get(f"{side}_block_out_channels", cls.encoder_block_out_channels))
            for key in (f"{side}_block_types", f"{side}_norm_types", f"{side}_act_fns"):
                if key in known:
                    values[key] = _spread(values.get(key, getattr(cls, key)[0]), levels)
            for key in (f"{side}_block_out_channels", f"{side}_layers_per_block"):
                if key in values:
                    values[key] = tuple(values[key])
            key = f"{side}_qkv_multiscales"
            if key in values:
                values[key] = tuple(tuple(scales) for scales in values[key])
        built = cls(**values)
        built._check()
        return built

    def _check(self) -> None:
        self._check_numbers()
        choices: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
            ("encoder_block_types", self.encoder_block_types, BLOCKS),
            ("decoder_block_types", self.decoder_block_types, BLOCKS),
            ("decoder_norm_types", self.decoder_norm_types, NORMS),
            ("decoder_act_fns", self.decoder_act_fns, ACTIVATIONS),
            ("decoder_conv_act_fn", (self.decoder_conv_act_fn,), ACTIVATIONS),
            ("upsample_block_type", (self.upsample_block_type,), UPSAMPLERS),
        ]
        for name, given, allowed in choices:
            for value in given:
                if value not in allowed:
                    raise ValueError(f"DC-AE config: {name} is {value!r}, must be one of {allowed}")
        levels = len(self.encoder_block_out_channels)
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise ValueError(
                    f"DC-AE config: {name} has {len(value)} entries, must have {levels}, "
                    "one a level"
                )

    def _check_numbers(self) -> None:
        factor = self.scaling_factor
        is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not is_number or not 0 < factor < float("inf"):
            raise ValueError(f"DC-AE config: scaling_factor is {factor!r}, must be above 0")
        least = {"in_channels": 1, "latent_channels": 1, "attention_head_dim": 1}
        for side in ("encoder", "decoder"):
            least[f"{side}_block_out_channels"] = 1
            least[f"{side}_layers_per_block"] = 0
        for name, minimum in least.items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, bool) or not isinstance(number, int) or number < minimum:
                    raise ValueError(
                        f"DC-AE config: {name} is {value!r}, must be whole, at least {minimum}"
                    )
        for side in ("encoder", "decoder"):
            for size in (n for scales in getattr(self, f"{side}_qkv_multiscales") for n in scales):
                if isinstance(size, bool) or not isinstance(size, int) or size % 2 != 1:
                    raise ValueError(
                        f"DC-AE config: {side}_qkv_multiscales has {size!r}, must be odd"
                    )
