"""A model of clips as tests describe it: small sizes, every field."""

from __future__ import annotations

from pathlib import Path

from config.model_spec import FloatParameter, IntParameter, ModelSpec, VideoLimits

VIDEO_SPEC = ModelSpec(
    id="video-model",
    family="wan-vace",
    task="video",
    description="Moves nothing.",
    width=IntParameter(default=96, minimum=32, maximum=256, multiple_of=16),
    height=IntParameter(default=64, minimum=32, maximum=256, multiple_of=16),
    num_inference_steps=IntParameter(default=4, minimum=1, maximum=50),
    guidance_scale=FloatParameter(default=5.0, minimum=1.0, maximum=20.0),
    num_images=IntParameter(default=1, minimum=1, maximum=1),
    samplers=("unipc", "flow-euler"),
    max_prompt_chars=1000,
    video=VideoLimits(
        num_frames=IntParameter(default=17, minimum=1, maximum=33),
        fps=FloatParameter(default=16.0, minimum=1.0, maximum=60.0),
        flow_shift=FloatParameter(default=3.0, minimum=0.1, maximum=100.0),
        conditioning_scale=FloatParameter(default=1.0, minimum=0.0, maximum=2.0),
        num_conditioning_scales=3,
        max_reference_images=2,
        max_pixels=128 * 128 * 33,
    ),
    source=Path("/nowhere/secret-folder"),
)
