"""Euler's method for rectified flow: number of steps and shift in, a `SamplerPlan` out."""

from __future__ import annotations

from itertools import pairwise

from models.samplers.plan import SamplerPlan, StepCoefficients
from models.samplers.schedule import euler_flow_schedule


def flow_euler_plan(num_inference_steps: int, shift: float) -> SamplerPlan:
    """First-order steps along the velocity field (Liu et al., arXiv:2209.03003).

    x + (next_sigma - sigma) * velocity, written with the denoised sample like every other plan.
    Raises ValueError for fewer than one step or a shift that is not positive.
    """
    timesteps, sigmas = euler_flow_schedule(num_inference_steps, shift)
    steps = tuple(
        StepCoefficients(
            sigma=sigma, sample=after / sigma, denoised=1.0 - after / sigma, previous=0.0
        )
        for sigma, after in pairwise(sigmas)
    )
    return SamplerPlan("flow-euler", timesteps, sigmas, steps)
