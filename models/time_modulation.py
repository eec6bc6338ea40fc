"""Where in a schedule a transformer is, as a value computed once per request.

Every family modulates its blocks by the timestep in the same way. The values can be cut and joined
along the batch, so that requests at different steps share a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class TimeModulation:
    """Embedded timesteps: `modulation` [N, 6, D] for the blocks, `embedded` [N, D] for the output.

    N counts the timesteps of a schedule, or the members of a batch. One timestep (N = 1) serves a
    batch of any size, and faster than the same timestep repeated.
    """

    modulation: Tensor
    embedded: Tensor

    def index(self, rows: int | Sequence[int]) -> Self:
        """The timestep at `rows`, or the timesteps in that order, possibly repeated."""
        if isinstance(rows, int):
            if not -len(self.embedded) <= rows < len(self.embedded):
                raise IndexError(f"row {rows} of {len(self.embedded)} timesteps")
            rows = rows % len(self.embedded)
            return type(self)(self.modulation[rows : rows + 1], self.embedded[rows : rows + 1])
        selected = torch.tensor(rows).to(self.embedded.device, non_blocking=True)
        return type(self)(self.modulation[selected], self.embedded[selected])

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Join timesteps of several requests or members into one batch."""
        return cls(
            torch.cat([part.modulation for part in parts]),
            torch.cat([part.embedded for part in parts]),
        )
