"""Whether a request is one that a model serves: a `VideoRequest` and a `ModelSpec` in, nothing out.

The job layer has checked all of this before a worker sees a job; a pipeline that is driven directly
must not compute, or take the memory for, what its model does not offer.
"""

from __future__ import annotations

from config.model_spec import FloatParameter, IntParameter, ModelSpec
from models.pipeline import VideoRequest
from models.wan.latent_shape import FRAMES_PER_LATENT


def check_request(request: VideoRequest, spec: ModelSpec) -> None:
    """Raise ValueError, naming the field, unless `request` is within the limits of `spec`."""
    video = spec.video
    if video is None:
        raise ValueError(f"{spec.id} makes no clips")
    for field, allowed in (
        ("width", spec.width),
        ("height", spec.height),
        ("num_frames", video.num_frames),
        ("fps", video.fps),
        ("num_inference_steps", spec.num_inference_steps),
        ("guidance_scale", spec.guidance_scale),
        ("flow_shift", video.flow_shift),
    ):
        _check_range(field, getattr(request, field), allowed)
    if request.num_frames % FRAMES_PER_LATENT != 1:
        raise ValueError(f"num_frames is {request.num_frames}, expected 4n + 1")
    if request.num_pixels > video.max_pixels:
        raise ValueError(
            f"num_frames is {request.num_frames} of {request.width}x{request.height}: "
            f"{request.num_pixels} pixels, allowed: {video.max_pixels}"
        )
    count = len(request.reference_images)
    if count > video.max_reference_images:
        raise ValueError(
            f"reference_images: {count} were given, allowed: {video.max_reference_images}"
        )
    scales = request.conditioning_scale
    if len(scales) not in (1, video.num_conditioning_scales):
        raise ValueError(
            f"conditioning_scale has {len(scales)} entries, "
            f"expected 1 or {video.num_conditioning_scales}"
        )
    for scale in scales:
        _check_range("conditioning_scale", scale, video.conditioning_scale)
    if request.sampler not in spec.samplers:
        raise ValueError(f"sampler is {request.sampler!r}, allowed: {', '.join(spec.samplers)}")


def _check_range(field: str, value: float, allowed: IntParameter | FloatParameter) -> None:
    multiple_of = allowed.multiple_of if isinstance(allowed, IntParameter) else 1
    # Only grids are asked for whole numbers: a real number divides by 1 with a rest.
    if not allowed.minimum <= value <= allowed.maximum or (multiple_of > 1 and value % multiple_of):
        steps = f" in steps of {multiple_of}" if multiple_of > 1 else ""
        raise ValueError(
            f"{field} is {value}, allowed: {allowed.minimum}..{allowed.maximum}{steps}"
        )
