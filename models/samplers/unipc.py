"""UniPC of order 2 for rectified flow: number of steps and shift in, a `SamplerPlan` out.

Zhao et al., UniPC, arXiv:2302.04867, with data prediction and B(h) = exp(h) - 1 ("bh2"). Its
predictor is the step of DPM-Solver++ (2M). What it adds is the corrector: when the network has seen
the latents a step arrived at, that prediction first improves the very same step, at no further
evaluation, and the next step starts from the improved latents.
"""

from __future__ import annotations

import dataclasses
import math

from models.samplers.dpm_solver import log_snr, multistep_coefficients
from models.samplers.plan import HISTORY, Corrector, SamplerPlan
from models.samplers.schedule import unipc_schedule


def unipc_plan(num_inference_steps: int, shift: float) -> SamplerPlan:
    """The sampler of Wan's official release: correction from the second step on, first order at
    both ends.

    The latents that the last step arrives at are not corrected, for nothing is predicted there.
    Raises ValueError for fewer than one step or a shift that is not positive.
    """
    timesteps, sigmas = unipc_schedule(num_inference_steps, shift)
    steps = list(multistep_coefficients(sigmas))
    for i in range(1, num_inference_steps):
        steps[i] = dataclasses.replace(steps[i], corrector=_corrector(sigmas, i))
    return SamplerPlan("unipc", timesteps, sigmas, tuple(steps), history_size=len(HISTORY))


def _corrector(sigmas: tuple[float, ...], i: int) -> Corrector:
    """UniC for the step from level i - 1 to level i, of the order that step had: 1 for the first.

    `newest` and `oldest` weigh how far the predictions at level i and i - 2 are from that at i - 1.
    """
    ratio = sigmas[i] / sigmas[i - 1]
    toward = 1.0 - ratio
    newest, oldest = 0.5, 0.0
    if i > 1:
        h = log_snr(sigmas[i]) - log_snr(sigmas[i - 1])
        r = (log_snr(sigmas[i - 2]) - log_snr(sigmas[i - 1])) / h
        # Both weights make the corrected step exact for data linear and quadratic in lambda: the
        # integrals of that over exp(-h) are b1 and b2, in units of B(h).
        phi1 = math.expm1(-h)
        phi2 = phi1 / -h - 1
        phi3 = phi2 / -h - 0.5
        b1, b2 = phi2 / phi1, 2 * phi3 / phi1
        weight = (b1 - b2) / (1 - r)
        newest, oldest = b1 - weight, weight / r
    return Corrector(
        corrected=ratio,
        denoised=toward * newest,
        previous=toward * (1 - newest - oldest),
        earlier=toward * oldest,
    )
