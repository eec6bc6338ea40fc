"""Noise levels for rectified flow: how far apart the steps are, and which timestep each one is.

Several conventions are in use for the same models and those of each model's release are reproduced
to the last digit, because a network answers differently at a timestep it was not asked for. Noise
levels are rounded to float32, as published samplers hold them; close to pure noise that rounding is
visible in the result.
"""

from __future__ import annotations

import math
from array import array

_NUM_TRAIN_TIMESTEPS = 1000


def dpm_flow_schedule(
    num_inference_steps: int, shift: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Timesteps (n, whole numbers) and sigmas (n + 1, the last one 0) of the multistep solver.

    Starts at a noise level just below 1, so that the signal never vanishes entirely; timesteps are
    cut to whole numbers. Raises ValueError for fewer than one step or a shift that is not positive.
    """
    _check(num_inference_steps, shift)
    signal = _linspace(1.0, 1.0 / _NUM_TRAIN_TIMESTEPS, num_inference_steps + 1)
    sigmas = [_shift(1.0 - level, shift) for level in reversed(signal[1:])]
    timesteps = tuple(float(int(sigma * _NUM_TRAIN_TIMESTEPS)) for sigma in sigmas)
    return timesteps, (*_float32(sigmas), 0.0)


def euler_flow_schedule(
    num_inference_steps: int, shift: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Timesteps (n, fractional) and sigmas (n + 1, from 1 to 0) of the Euler method.

    The smallest level of the training schedule is shifted twice, once with that schedule and once
    with this one: that is how the published sampler does it. Raises ValueError for fewer than one
    step or a shift that is not positive.
    """
    _check(num_inference_steps, shift)
    lowest = _lowest_training_sigma(shift)
    grid = _linspace(
        float(_NUM_TRAIN_TIMESTEPS), lowest * _NUM_TRAIN_TIMESTEPS, num_inference_steps
    )
    sigmas = _float32([_shift(timestep / _NUM_TRAIN_TIMESTEPS, shift) for timestep in grid])
    timesteps = _float32([sigma * _NUM_TRAIN_TIMESTEPS for sigma in sigmas])
    return tuple(timesteps), (*sigmas, 0.0)


def unipc_schedule(
    num_inference_steps: int, shift: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Timesteps (n, whole numbers) and sigmas (n + 1, the last one 0) of UniPC in Wan's release.

    Levels go evenly from 0.999 to 0 and are then shifted, so that the signal never vanishes
    entirely. The scheduler of the same name in diffusers 0.42 goes from 1 to 0.001, with 0.000001
    taken off the first: other levels, and timesteps up to 2 higher. Raises ValueError for fewer
    than one step or a shift that is not positive.
    """
    _check(num_inference_steps, shift)
    (highest,) = _float32([1.0 - 1.0 / _NUM_TRAIN_TIMESTEPS])
    grid = _linspace(highest, 0.0, num_inference_steps + 1)[:-1]
    sigmas = [_shift(sigma, shift) for sigma in grid]
    timesteps = tuple(float(int(sigma * _NUM_TRAIN_TIMESTEPS)) for sigma in sigmas)
    return timesteps, (*_float32(sigmas), 0.0)


def wan_schedule(
    num_inference_steps: int, shift: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Timesteps (n, fractional) and sigmas (n + 1, from 1 to 0) of `get_sampling_sigmas` in Wan's
    release: even levels, shifted once.

    Wan's DPM-Solver++ takes them with timesteps cut to whole numbers; in diffusers that scheduler
    has the levels of `dpm_flow_schedule`. Raises ValueError for fewer than one step or a shift that
    is not positive.
    """
    _check(num_inference_steps, shift)
    grid = _linspace(1.0, 0.0, num_inference_steps + 1)[:-1]
    sigmas = [_shift(sigma, shift) for sigma in grid]
    return tuple(sigma * _NUM_TRAIN_TIMESTEPS for sigma in sigmas), (*_float32(sigmas), 0.0)


def _check(num_inference_steps: int, shift: float) -> None:
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}, expected at least 1")
    if not 0 < shift < math.inf:
        raise ValueError(f"shift is {shift}, expected a positive number")


def _shift(sigma: float, shift: float) -> float:
    """Move a noise level towards 1 for shift > 1 (Esser et al., arXiv:2403.03206, sec. 5.3)."""
    # Rounding may lift pure noise above itself.
    return min(1.0, shift * sigma / (1 + (shift - 1) * sigma))


def _lowest_training_sigma(shift: float) -> float:
    """The smallest of the 1000 shifted training levels, in float32 arithmetic throughout."""
    sigma, factor, excess = _float32([1.0 / _NUM_TRAIN_TIMESTEPS, shift, shift - 1])
    numerator, product = _float32([factor * sigma, excess * sigma])
    (denominator,) = _float32([1.0 + product])
    (lowest,) = _float32([numerator / denominator])
    return lowest


def _linspace(start: float, stop: float, count: int) -> list[float]:
    """`count` evenly spaced numbers, both ends included; `start` alone when there is only one."""
    if count == 1:
        return [start]
    step = (stop - start) / (count - 1)
    return [i * step + start for i in range(count - 1)] + [stop]


def _float32(values: list[float]) -> list[float]:
    """Each value rounded to the nearest float32."""
    return array("f", values).tolist()
