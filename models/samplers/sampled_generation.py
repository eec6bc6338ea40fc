"""The part of a generation that a sampler moves: latents, history and step, between two steps.

Every family's generation is a `SampledGeneration` with its own conditioning added; `take_step`
moves a batch of them on, velocities in, new latents and histories in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.pipeline import Generation
from models.samplers.plan import HISTORY, SamplerPlan
from models.samplers.stepping import advance


class SampledGeneration(Generation):
    """Latents [B, ...] float32, at step `step_index` of `plan`, with the sampler's `history`.

    `history` has the first `plan.history_size` tensors of `models.samplers.HISTORY`, each shaped
    like the latents and zero before the first step.
    """

    def __init__(self, plan: SamplerPlan, latents: Tensor) -> None:
        self.plan = plan
        self.latents = latents
        self.history = tuple(torch.zeros_like(latents) for _ in range(plan.history_size))
        self.step_index = 0
        self.num_steps = plan.num_steps

    @property
    def previous_denoised(self) -> Tensor:
        """The last estimate of the finished latents."""
        return self.history[0]

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of `latents` and the history, by name, float32, and `step_index`, int64 scalar."""
        tensors = {name: tensor.clone() for name, tensor in self._tensors().items()}
        return {**tensors, "step_index": torch.tensor(self.step_index)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`, which may lie on any device.

        Raises ValueError naming the entry when it is missing, unknown, of another shape or dtype,
        not finite, or a step beyond the last; the generation is then unchanged.
        """
        names = list(self._tensors())
        expected = {*names, "step_index"}
        if state.keys() != expected:
            raise ValueError(f"state holds {sorted(state)}, expected {sorted(expected)}")
        for name in names:
            tensor = state[name]
            if tensor.shape != self.latents.shape or tensor.dtype != torch.float32:
                raise ValueError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}, "
                    f"expected torch.float32 {list(self.latents.shape)}"
                )
            if not tensor.isfinite().all():
                raise ValueError(f"{name} is not finite")
        counter = state["step_index"]
        if counter.numel() != 1 or counter.dtype != torch.int64:
            raise ValueError(
                f"step_index is {counter.dtype} {list(counter.shape)}, expected one torch.int64"
            )
        step_index = int(counter.item())
        if not 0 <= step_index <= self.num_steps:
            raise ValueError(f"step_index is {step_index}, expected 0..{self.num_steps}")
        device = self.latents.device
        self.latents, *history = (state[name].to(device, copy=True) for name in names)
        self.history = tuple(history)
        self.step_index = step_index

    def _tensors(self) -> dict[str, Tensor]:
        names = ("latents", *HISTORY[: len(self.history)])
        return dict(zip(names, (self.latents, *self.history), strict=True))


def take_step(members: Sequence[SampledGeneration], latents: Tensor, velocity: Tensor) -> None:
    """Move every member on by one step of its own plan.

    `latents` are those of the members, joined in their order along the first dimension; `velocity`
    is what the network predicts for them, of the same shape. No member changes if anything raises.
    """
    sizes = [len(member.latents) for member in members]
    moved, history = advance(
        [member.plan for member, size in zip(members, sizes, strict=True) for _ in range(size)],
        [member.step_index for member, n in zip(members, sizes, strict=True) for _ in range(n)],
        latents,
        velocity,
        _joined_history(members),
    )
    parts = [tensor.split(sizes) for tensor in history]
    for index, (member, own) in enumerate(zip(members, moved.split(sizes), strict=True)):
        member.latents = own
        member.history = tuple(part[index] for part in parts[: member.plan.history_size])
        member.step_index += 1


def _joined_history(members: Sequence[SampledGeneration]) -> tuple[Tensor, ...]:
    """As long as the longest; the places that a member does not use are zero."""
    longest = max(member.plan.history_size for member in members)
    return tuple(
        torch.cat([_at(member, place) for member in members])
        if len(members) > 1
        else _at(members[0], place)
        for place in range(longest)
    )


def _at(member: SampledGeneration, place: int) -> Tensor:
    used = place < len(member.history)
    return member.history[place] if used else torch.zeros_like(member.latents)
