"""What a sampler is: a schedule and, for each of its steps, the weights of a linear combination.

A factory (dpm_solver, flow_euler) makes a `SamplerPlan` once per request from plain numbers; the
loop that denoises only looks up the step it is at. There is no sampler state other than the step
index and the previous step's prediction, both of which belong to the sample.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepCoefficients:
    """One step: with denoised = x - sigma * velocity, the next x is
    sample * x + denoised * denoised + previous * previous_denoised.

    `previous` is zero wherever there is no earlier prediction to use.
    """

    sigma: float
    sample: float
    denoised: float
    previous: float


@dataclass(frozen=True)
class SamplerPlan:
    """A sampler with its schedule: everything about the steps of one request but the tensors.

    `timesteps`, one per step, are what the network is told, in 0..1000; `sigmas`, one more than
    steps and ending in 0, are noise levels: x = (1 - sigma) * data + sigma * noise.
    """

    name: str
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    coefficients: tuple[StepCoefficients, ...]

    @property
    def num_steps(self) -> int:
        """How often the network is evaluated."""
        return len(self.coefficients)
