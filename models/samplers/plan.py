"""What a sampler is: a schedule and, for each of its steps, the weights of linear combinations.

A factory (dpm_solver, flow_euler, unipc) makes a `SamplerPlan` once per request from plain numbers;
the loop that denoises only looks up the step it is at. There is no sampler state other than the
step index and a few earlier results, its history, all of which belong to the sample.
"""

from __future__ import annotations

from dataclasses import dataclass

HISTORY = ("previous_denoised", "earlier_denoised", "corrected_latents")
"""What a history holds, in this order and up to the plan's `history_size`: the denoised predictions
of the last step and of the one before it, and the corrected latents of the last step."""


@dataclass(frozen=True)
class Corrector:
    """How a step improves the latents it starts from, once the network has seen them:

    corrected * corrected_latents + denoised * denoised + previous * previous_denoised
    + earlier * earlier_denoised, all but the second from the history.
    """

    corrected: float
    denoised: float
    previous: float
    earlier: float


@dataclass(frozen=True)
class StepCoefficients:
    """One step: with denoised = x - sigma * velocity, the next x is
    sample * x + denoised * denoised + previous * previous_denoised.

    `previous` is zero wherever there is no earlier prediction to use. With a `corrector` the last
    formula takes the corrected latents for x; without one, x is its own correction.
    """

    sigma: float
    sample: float
    denoised: float
    previous: float
    corrector: Corrector | None = None


@dataclass(frozen=True)
class SamplerPlan:
    """A sampler with its schedule: everything about the steps of one request but the tensors.

    `timesteps`, one per step, are what the network is told, in 0..1000; `sigmas`, one more than
    steps and ending in 0, are noise levels: x = (1 - sigma) * data + sigma * noise. `history_size`
    is how many tensors of `HISTORY` a step leaves for the next, at least the first.
    """

    name: str
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    coefficients: tuple[StepCoefficients, ...]
    history_size: int = 1

    @property
    def num_steps(self) -> int:
        """How often the network is evaluated."""
        return len(self.coefficients)
