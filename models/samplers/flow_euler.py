"""Euler's method for rectified flow: number of steps and shift in, a `SamplerPlan` out."""

from __future__ import annotations

from itertools import pairwise

from models.samplers.plan import SamplerPlan, StepCoefficients
from models.samplers.schedule import euler_flow_schedule, wan_schedule


def flow_euler_plan(num_inference_steps: int, shift: float) -> SamplerPlan:
    """First-order steps along the velocity field (Liu et al., arXiv:2209.03003).

    x + (next_sigma - sigma) * velocity, written with the denoised sample like every other plan.
    Raises ValueError for fewer than one step or a shift that is not positive.
    """
    return _plan(*euler_flow_schedule(num_inference_steps, shift))


def wan_flow_euler_plan(num_inference_steps: int, shift: float) -> SamplerPlan:
    """The same method on Wan's own noise levels, shifted once.

    These are the levels that few-step distilled Wan models are made for; the schedule of
    `flow_euler_plan` stops far from zero noise at the shifts Wan takes (at 0.20 for a shift of 16).
    Wan's official release has no Euler sampler. Raises ValueError as `flow_euler_plan` does.
    """
    return _plan(*wan_schedule(num_inference_steps, shift))


def _plan(timesteps: tuple[float, ...], sigmas: tuple[float, ...]) -> SamplerPlan:
    steps = tuple(
        StepCoefficients(
            sigma=sigma, sample=after / sigma, denoised=1.0 - after / sigma, previous=0.0
        )
        for sigma, after in pairwise(sigmas)
    )
    return SamplerPlan("flow-euler", timesteps, sigmas, steps)
