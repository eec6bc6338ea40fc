"""DPM-Solver++ (2M) for rectified flow: second order with one network evaluation per step.

Number of steps and shift in, a `SamplerPlan` out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from models.samplers.plan import SamplerPlan, StepCoefficients
from models.samplers.schedule import dpm_flow_schedule, wan_schedule


def dpm_solver_plan(num_inference_steps: int, shift: float, *, order: int = 2) -> SamplerPlan:
    """The multistep data-prediction solver of Lu et al., arXiv:2211.01095, algorithm 2 (midpoint).

    The first step has no history and the last one ends at sigma = 0, where the signal-to-noise
    ratio is infinite: both are of first order, as are all with `order` 1. Raises ValueError for an
    order other than 1 or 2, fewer than one step, or a shift that is not positive.
    """
    if order not in (1, 2):
        raise ValueError(f"order is {order}, expected 1 or 2")
    timesteps, sigmas = dpm_flow_schedule(num_inference_steps, shift)
    return SamplerPlan("dpm-solver++", timesteps, sigmas, multistep_coefficients(sigmas, order))


def wan_dpm_solver_plan(num_inference_steps: int, shift: float) -> SamplerPlan:
    """The same solver on the schedule that Wan's official release gives it.

    It begins with pure noise, from which the second step cannot extrapolate either. Raises
    ValueError for fewer than one step or a shift that is not positive.
    """
    timesteps, sigmas = wan_schedule(num_inference_steps, shift)
    whole = tuple(float(int(timestep)) for timestep in timesteps)
    return SamplerPlan("dpm-solver++", whole, sigmas, multistep_coefficients(sigmas))


def multistep_coefficients(sigmas: Sequence[float], order: int = 2) -> tuple[StepCoefficients, ...]:
    """Steps from each noise level to the next, the last of which is 0; of first order at both ends.

    Signal alpha = 1 - sigma, log signal-to-noise ratio lambda = log(alpha / sigma).
    """
    steps = []
    num_steps = len(sigmas) - 1
    for i in range(num_steps):
        sigma, next_sigma = sigmas[i], sigmas[i + 1]
        # alpha_next * (1 - exp(-h)) reduces to this on a straight path: no logarithm, no infinity.
        toward = 1.0 - next_sigma / sigma
        extrapolation = 0.0
        if order == 2 and 0 < i < num_steps - 1:
            h = log_snr(next_sigma) - log_snr(sigma)
            h_previous = log_snr(sigma) - log_snr(sigmas[i - 1])
            extrapolation = 0.5 * toward * h / h_previous
        steps.append(
            StepCoefficients(
                sigma=sigma,
                sample=next_sigma / sigma,
                denoised=toward + extrapolation,
                previous=-extrapolation,
            )
        )
    return tuple(steps)


def log_snr(sigma: float) -> float:
    """Half the log signal-to-noise ratio, for 0 < sigma <= 1; minus infinity for pure noise."""
    return math.log1p(-sigma) - math.log(sigma) if sigma < 1 else -math.inf
