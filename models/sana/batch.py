"""Several generations as one batch of rows: what a step of the transformer needs beyond latents.

The rows of a batch are all images without their prompt, where guidance asks for them, then all
images with it. Everything here depends on who is in the batch and not on how far they are, so a
pipeline builds it when the members change and keeps it while they stay together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.sana.conditioning import TextConditioning
from models.sana.generation import SanaGeneration
from models.time_modulation import TimeModulation


class BatchConditioning:
    """Text, schedules and guidance of the members of one batch, joined.

    `text` has one row per row of the batch; `guidance_scale` is float32 [images, 1, 1, 1], or None
    when the batch is not guided. `serials` are those of the members, in order.
    """

    def __init__(self, members: Sequence[SanaGeneration]) -> None:
        self.serials = serials_of(members)
        self._images = [len(member.latents) for member in members]
        self._is_guided = members[0].is_guided
        self.text = self._join_text([member.text for member in members])
        # One member's schedule needs no copy: a single row serves a whole batch.
        self._time = (
            members[0].time
            if len(members) == 1
            else TimeModulation.cat([member.time for member in members])
        )
        self._first_row = [0]
        for member in members[:-1]:
            self._first_row.append(self._first_row[-1] + member.num_steps)
        self.guidance_scale: Tensor | None = None
        if self._is_guided:
            scales = [
                member.request.guidance_scale
                for member, images in zip(members, self._images, strict=True)
                for _ in range(images)
            ]
            device = members[0].latents.device
            self.guidance_scale = torch.tensor(scales, device=device)[:, None, None, None]

    def time(self, step_indices: Sequence[int]) -> TimeModulation:
        """The embedded timesteps of a step, one per row of the batch or one for all of it.

        `step_indices` holds each member's own step.
        """
        rows = [first + step for first, step in zip(self._first_row, step_indices, strict=True)]
        if len(rows) == 1:
            return self._time.index(rows[0])
        per_image = [
            row for row, images in zip(rows, self._images, strict=True) for _ in range(images)
        ]
        return self._time.index(per_image * 2 if self._is_guided else per_image)

    def _join_text(self, texts: list[TextConditioning]) -> TextConditioning:
        text = texts[0] if len(texts) == 1 else TextConditioning.cat(texts)
        per_member = 2 if self._is_guided else 1
        rows = [
            member * per_member + branch
            for branch in range(per_member)
            for member, images in enumerate(self._images)
            for _ in range(images)
        ]
        return text if rows == list(range(len(text.lengths))) else text.index(rows)


def serials_of(members: Sequence[SanaGeneration]) -> tuple[int, ...]:
    """What identifies a batch's composition."""
    return tuple(member.serial for member in members)
