"""Limits and defaults of a Wan-VACE checkpoint: its files become fields of a `ModelSpec`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.samplers import SAMPLERS
from models.wan.checkpoint import WanVaceCheckpoint
from models.wan.latent_shape import PIXELS_PER_LATENT

NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
    "低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，"
    "毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""What Wan's official commands take wherever no negative prompt is given."""

# The largest clip that the model was trained for.
_WIDTH, _HEIGHT, _FRAMES = 1280, 720, 81


def spec_fields(source: Path) -> dict[str, Any]:
    """The fields of the spec but `id` and `source`; `source` is a folder or a GGUF transformer.

    Sizes, length, frame rate, steps, guidance and negative prompt are those of the official
    commands. Raises CheckpointError and UnsupportedCheckpoint.
    """
    checkpoint = WanVaceCheckpoint.read(source)
    grid = PIXELS_PER_LATENT * checkpoint.config.patch_size[1]
    largest = {"minimum": grid, "maximum": _WIDTH, "multiple_of": grid}
    return {
        "family": "wan-vace",
        "task": "video",
        "width": {"default": 832, **largest},
        "height": {"default": 480, **largest},
        "num_inference_steps": {"default": 50, "minimum": 1, "maximum": 100},
        "guidance_scale": {"default": 5.0, "minimum": 1.0, "maximum": 20.0},
        "negative_prompt": NEGATIVE_PROMPT,
        "num_images": {"default": 1, "minimum": 1, "maximum": 1},
        "samplers": (
            checkpoint.sampler,
            *(name for name in SAMPLERS if name != checkpoint.sampler),
        ),
        "video": {
            "num_frames": {"default": _FRAMES, "minimum": 1, "maximum": _FRAMES},
            "fps": {"default": 16.0, "minimum": 1.0, "maximum": 60.0},
            "flow_shift": {"default": checkpoint.shift, "minimum": 0.1, "maximum": 100.0},
            "conditioning_scale": {"default": 1.0, "minimum": 0.0, "maximum": 2.0},
            "num_conditioning_scales": len(checkpoint.config.vace_layers),
            "max_reference_images": 4,
            "max_pixels": _WIDTH * _HEIGHT * _FRAMES,
        },
    }
