"""DPM-Solver++ (2M) for rectified flow: second order with one network evaluation per step.

Number of steps and shift in, a `SamplerPlan` out.
"""

from __future__ import annotations

import math

from models.samplers.plan import SamplerPlan, StepCoefficients
from models.samplers.schedule import dpm_flow_schedule


def dpm_solver_plan(num_inference_steps: int, shift: float, *, order: int = 2) -> SamplerPlan:
    """The multistep data-prediction solver of Lu et al., arXiv:2211.01095, algorithm 2 (midpoint).

    Signal alpha = 1 - sigma, log signal-to-noise ratio lambda = log(alpha / sigma). The first step
    has no history and the last one ends at sigma = 0, where lambda is infinite: both are of first
    order, as are all with `order` 1. Raises ValueError for an order other than 1 or 2, fewer than
    one step, or a shift that is not positive.
    """
    if order not in (1, 2):
        raise ValueError(f"order is {order}, expected 1 or 2")
    timesteps, sigmas = dpm_flow_schedule(num_inference_steps, shift)
    steps = []
    for i in range(num_inference_steps):
        sigma, next_sigma = sigmas[i], sigmas[i + 1]
        # alpha_next * (1 - exp(-h)) reduces to this on a straight path: no logarithm, no infinity.
        toward = 1.0 - next_sigma / sigma
        extrapolation = 0.0
        if order == 2 and 0 < i < num_inference_steps - 1:
            h = _lambda(next_sigma) - _lambda(sigma)
            h_previous = _lambda(sigma) - _lambda(sigmas[i - 1])
            extrapolation = 0.5 * toward * h / h_previous
        steps.append(
            StepCoefficients(
                sigma=sigma,
                sample=next_sigma / sigma,
                denoised=toward + extrapolation,
                previous=-extrapolation,
            )
        )
    return SamplerPlan("dpm-solver++", timesteps, sigmas, tuple(steps))


def _lambda(sigma: float) -> float:
    """Half the log signal-to-noise ratio; finite for every sigma strictly between 0 and 1."""
    return math.log1p(-sigma) - math.log(sigma)
