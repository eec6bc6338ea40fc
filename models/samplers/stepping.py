"""One sampler step for a whole batch: velocities in, the next latents and histories out.

Every sample brings its own plan and is at its own step of it, so requests of different lengths and
samplers advance together in the same few tensor operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.samplers.plan import Corrector, SamplerPlan

_NO_CORRECTION = Corrector(corrected=0.0, denoised=0.0, previous=0.0, earlier=0.0)


def advance(
    plans: Sequence[SamplerPlan],
    step_indices: Sequence[int],
    latents: Tensor,
    velocity: Tensor,
    history: tuple[Tensor, ...],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Advance sample i, [B, ...] in all tensors, by step `step_indices[i]` of `plans[i]`.

    `latents` are float32 (or float64) and set the precision of the arithmetic; `velocity` is noise
    minus data at the latents. `history` is the second result of the samples' last steps, or zeros
    before the first, as many tensors as the neediest plan's `history_size`; what a plan does not
    need may hold any finite numbers. Returns the next latents and a history of the same size, in
    the dtype of `latents`; its first is the denoised prediction. No argument is written to. Raises
    ValueError when the batch sizes differ or the history is too short, and IndexError for a step
    that a plan does not have.
    """
    if not len(plans) == len(step_indices) == len(latents):
        raise ValueError(
            f"{len(plans)} plans and {len(step_indices)} step indices for {len(latents)} samples"
        )
    if len(history) < (needed := max(plan.history_size for plan in plans)):
        raise ValueError(f"history holds {len(history)} tensors, the plans need {needed}")
    steps = [plan.coefficients[i] for plan, i in zip(plans, step_indices, strict=True)]
    minus_sigma, sample, denoise, previous = _columns(
        [(-step.sigma, step.sample, step.denoised, step.previous) for step in steps], latents
    )
    denoised = torch.addcmul(latents, velocity.to(latents.dtype), minus_sigma)
    start = latents
    if any(step.corrector for step in steps):
        start = _corrected([step.corrector for step in steps], latents, denoised, history)
    moved = torch.addcmul(start * sample, denoised, denoise)
    moved = torch.addcmul(moved, history[0], previous)
    return moved, (denoised, history[0], start)[: len(history)]


def _corrected(
    correctors: Sequence[Corrector | None],
    latents: Tensor,
    denoised: Tensor,
    history: tuple[Tensor, ...],
) -> Tensor:
    """The latents each sample really starts from; those without a corrector stay exactly."""
    rows = [
        (float(c is None), w.corrected, w.denoised, w.previous, w.earlier)
        for c in correctors
        for w in (c or _NO_CORRECTION,)
    ]
    keep, corrected, newest, previous, earlier = _columns(rows, latents)
    start = torch.addcmul(latents * keep, history[2], corrected)
    start = torch.addcmul(start, denoised, newest)
    start = torch.addcmul(start, history[0], previous)
    return torch.addcmul(start, history[1], earlier)


def _columns(rows: Sequence[tuple[float, ...]], like: Tensor) -> tuple[Tensor, ...]:
    """One tensor [B, 1, ...] for each number that the samples' rows hold."""
    table = torch.tensor(list(zip(*rows, strict=True)), dtype=like.dtype)
    # Not waiting for the copy lets a GPU take this step while the next one is being prepared.
    table = table.to(like.device, non_blocking=True)
    return table.view(*table.shape, *[1] * (like.ndim - 1)).unbind(0)
