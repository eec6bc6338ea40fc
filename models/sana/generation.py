"""One Sana request between two denoise steps, as a value.

`SanaPipeline.begin` makes it, `SanaPipeline.step` moves it on. What changes from step to step is
three tensors, and those are what a checkpoint holds; the rest follows from the request and is
computed once.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from models.pipeline import Generation, ImageRequest
from models.samplers import SamplerPlan
from models.sana.conditioning import TextConditioning, TimeModulation

_serials = itertools.count()


class SanaGeneration(Generation):
    """Latents, sampler history and conditioning of one request.

    `latents` and `previous_denoised` (the last estimate of the finished latents, zero before the
    first step) are float32 [num_images, channels, height / 32, width / 32]. `text` holds the rows
    negative, positive when guidance doubles the batch, else positive alone; `time` one row per
    step. `serial` tells generations of this process apart and is never given twice.
    """

    def __init__(
        self,
        request: ImageRequest,
        *,
        batch_key: Hashable,
        latents: Tensor,
        plan: SamplerPlan,
        text: TextConditioning,
        time: TimeModulation,
    ) -> None:
        self.request = request
        self.batch_key = batch_key
        self.latents = latents
        self.previous_denoised = torch.zeros_like(latents)
        self.step_index = 0
        self.num_steps = len(plan.timesteps)
        self.plan = plan
        self.text = text
        self.time = time
        self.serial = next(_serials)

    @property
    def is_guided(self) -> bool:
        """True when every image takes two rows of a batch: without and with the prompt."""
        return len(self.text.lengths) == 2

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of `latents`, `previous_denoised` (float32) and `step_index` (int64, scalar)."""
        return {
            "latents": self.latents.clone(),
            "previous_denoised": self.previous_denoised.clone(),
            "step_index": torch.tensor(self.step_index),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`, which may lie on any device.

        Raises ValueError naming the entry when it is missing, unknown, of another shape or dtype,
        not finite, or a step beyond the last; the generation is then unchanged.
        """
        expected = {"latents", "previous_denoised", "step_index"}
        if state.keys() != expected:
            raise ValueError(f"state holds {sorted(state)}, expected {sorted(expected)}")
        for name in ("latents", "previous_denoised"):
            tensor = state[name]
            if tensor.shape != self.latents.shape or tensor.dtype != torch.float32:
                raise ValueError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}, "
                    f"expected torch.float32 {list(self.latents.shape)}"
                )
            if not tensor.isfinite().all():
                raise ValueError(f"{name} is not finite")
        if state["step_index"].numel() != 1:
            raise ValueError(f"step_index has {state['step_index'].numel()} elements, expected 1")
        step_index = int(state["step_index"].item())
        if not 0 <= step_index <= self.num_steps:
            raise ValueError(f"step_index is {step_index}, expected 0..{self.num_steps}")
        device = self.latents.device
        self.latents = state["latents"].to(device, copy=True)
        self.previous_denoised = state["previous_denoised"].to(device, copy=True)
        self.step_index = step_index
