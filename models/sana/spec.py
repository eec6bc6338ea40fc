"""Limits and defaults of a Sana checkpoint: its configuration becomes fields of a `ModelSpec`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.samplers import SAMPLERS
from models.sana.checkpoint import PIXELS_PER_LATENT, SanaCheckpoint


def spec_fields(folder: Path) -> dict[str, Any]:
    """The fields of the spec but `id` and `source`.

    The default size is the one trained for, and the limits a factor of two around it, which is what
    the published aspect ratios span. Raises CheckpointError and UnsupportedCheckpoint.
    """
    checkpoint = SanaCheckpoint.read(folder)
    grid = PIXELS_PER_LATENT * checkpoint.transformer.patch_size
    side = checkpoint.transformer.sample_size * PIXELS_PER_LATENT
    size = {
        "default": side,
        "minimum": max(grid, side // 2 // grid * grid),
        "maximum": side * 2,
        "multiple_of": grid,
    }
    return {
        "family": "sana",
        "width": size,
        "height": size,
        "num_inference_steps": {"default": 20, "minimum": 1, "maximum": 100},
        "guidance_scale": {"default": 4.5, "minimum": 1.0, "maximum": 20.0},
        "samplers": (
            checkpoint.sampler,
            *(name for name in SAMPLERS if name != checkpoint.sampler),
        ),
    }
