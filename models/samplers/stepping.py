"""One sampler step for a whole batch: velocities in, the next latents and predictions out.

Every sample brings its own plan and is at its own step of it, so requests of different lengths and
samplers advance together in the same few tensor operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.samplers.plan import SamplerPlan


def advance(
    plans: Sequence[SamplerPlan],
    step_indices: Sequence[int],
    latents: Tensor,
    velocity: Tensor,
    previous_denoised: Tensor,
) -> tuple[Tensor, Tensor]:
    """Advance sample i, [B, ...] in all tensors, by step `step_indices[i]` of `plans[i]`.

    `latents` are float32 (or float64) and set the precision of the arithmetic; `velocity` is noise
    minus data at the latents. `previous_denoised` is the second result of the sample's last step,
    or zeros before its first. Returns the next latents and the denoised prediction, both in the
    dtype of `latents`; no argument is written to. Raises ValueError when the batch sizes differ
    and IndexError for a step that a plan does not have.
    """
    if not len(plans) == len(step_indices) == len(latents):
        raise ValueError(
            f"{len(plans)} plans and {len(step_indices)} step indices for {len(latents)} samples"
        )
    steps = [plan.coefficients[i] for plan, i in zip(plans, step_indices, strict=True)]
    table = torch.tensor(
        [
            [-step.sigma for step in steps],
            [step.sample for step in steps],
            [step.denoised for step in steps],
            [step.previous for step in steps],
        ],
        dtype=latents.dtype,
    )
    shape = (4, len(steps), *[1] * (latents.ndim - 1))
    # Not waiting for the copy lets a GPU take this step while the next one is being prepared.
    table = table.to(latents.device, non_blocking=True).view(shape)
    minus_sigma, sample, denoise, previous = table.unbind(0)
    denoised = torch.addcmul(latents, velocity.to(latents.dtype), minus_sigma)
    moved = torch.addcmul(latents * sample, denoised, denoise)
    return torch.addcmul(moved, previous_denoised, previous), denoised
