"""One Wan-VACE request between two denoise steps, and several of them as one batch.

`WanVacePipeline.prepare` makes a generation, `WanVacePipeline.step` moves it on. What changes from
step to step is the sampler's part, and that is what a checkpoint holds; text, schedule and VACE
context follow from the request and are computed once.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from models.pipeline import VideoRequest
from models.samplers import SamplerPlan, batch_check
from models.samplers.sampled_generation import SampledGeneration
from models.wan.transformer import TextConditioning, TimeModulation

_serials = itertools.count()


class WanVaceGeneration(SampledGeneration):
    """Latents, sampler history and conditioning of one request.

    `latents` and the sampler's history are float32 [1, 16, references + latent frames, height / 8,
    width / 8]: references come first and are dropped before decoding. `text` holds the rows
    negative, positive when guided, else positive alone; `time` one row per step; `context` the
    VACE tokens [1, N, D]; `scales` [1, VACE blocks]. Of the request only three numbers stay: its
    clips would take memory for as long as the job runs. `serial` tells generations of this process
    apart and is never given twice.
    """

    def __init__(
        self,
        request: VideoRequest,
        *,
        batch_key: Hashable,
        latents: Tensor,
        plan: SamplerPlan,
        text: TextConditioning,
        time: TimeModulation,
        context: Tensor,
        scales: Tensor,
    ) -> None:
        super().__init__(plan, latents)
        self.guidance_scale = request.guidance_scale
        self.fps = request.fps
        self.num_references = len(request.reference_images)
        """Latents before those of the clip."""
        self.batch_key = batch_key
        self.text = text
        self.time = time
        self.context = context
        self.scales = scales
        self.serial = next(_serials)

    @property
    def is_guided(self) -> bool:
        """True when the clip takes two rows of a batch: without and with its prompt."""
        return len(self.text.bias) == 2


class BatchConditioning:
    """What a step needs beyond latents: half by half, first without prompts, then with them.

    Depends on who is in the batch and not on how far they are, so a pipeline keeps it while they
    stay together. `guidance_scale` is float32 [members, 1, 1, 1, 1], or None when not guided.
    """

    def __init__(self, members: Sequence[WanVaceGeneration]) -> None:
        self.serials = serials_of(members)
        branches = 2 if members[0].is_guided else 1
        # One member alone lends its tensors: copies of a large clip's would take a gigabyte.
        self.text, self.context = members[0].text, members[0].context
        if len(members) > 1:
            rows = [
                member * branches + branch
                for branch in range(branches)
                for member in range(len(members))
            ]
            self.text = TextConditioning.cat([member.text for member in members]).index(rows)
            self.context = torch.cat([member.context for member in members])
        self.scales = torch.cat([member.scales for member in members])
        self._times = [member.time for member in members]
        self.guidance_scale: Tensor | None = None
        if members[0].is_guided:
            scales = [member.guidance_scale for member in members]
            device = members[0].latents.device
            self.guidance_scale = torch.tensor(scales, device=device).view(-1, 1, 1, 1, 1)

    def time(self, step_indices: Sequence[int]) -> TimeModulation:
        """The embedded timesteps of a step, one per member, each at its own step."""
        rows = [time.index(step) for time, step in zip(self._times, step_indices, strict=True)]
        return rows[0] if len(rows) == 1 else TimeModulation.cat(rows)


def serials_of(members: Sequence[WanVaceGeneration]) -> tuple[int, ...]:
    """What identifies a batch's composition."""
    return tuple(member.serial for member in members)


def checked_batch(batch: Sequence[object]) -> list[WanVaceGeneration]:
    """The members of a batch that may take a step together.

    Raises ValueError for an empty batch, a member given twice, one that is done and members whose
    `batch_key` differs, TypeError for generations of another family.
    """
    return batch_check.checked_batch([own(generation) for generation in batch])


def own(generation: object) -> WanVaceGeneration:
    """The generation, which must be one of a Wan-VACE pipeline; else TypeError."""
    if not isinstance(generation, WanVaceGeneration):
        raise TypeError(f"{type(generation).__name__} is not a generation of a Wan-VACE pipeline")
    return generation
