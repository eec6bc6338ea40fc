"""Where the state of jobs rests that wait for a step: on the device, or in host memory.

The engine reports what it holds; before a step or a decode it fetches what takes part, afterwards
`settle` moves out what waits beyond the budget, the least urgent first. A preempted clip so keeps
its latents, history and conditioning while others use the device's memory; a round trip changes no
bit of them. Which generation waits is the engine's business, how one moves that of the models.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from functools import partial

import structlog

from models.pipeline import Pipeline
from workers.device import Device
from workers.failures import attempt
from workers.member import RANKS, Member

log = structlog.get_logger(__name__)

HOST = "cpu"

DEFAULT_SHARE = 10
"""Without a setting, waiting generations may fill one part in so many of the device's memory."""


def default_budget(device: Device) -> float:
    """Bytes for what waits on this device; without end where the device's memory is the host's."""
    total = device.memory_bytes().get("total")
    return math.inf if total is None else total // DEFAULT_SHARE


class Parking:
    """Keeps waiting generations within `budget_bytes` of the device. One thread only."""

    def __init__(
        self, pipelines: Mapping[str, Pipeline], device: Device, budget_bytes: float
    ) -> None:
        self._pipelines = pipelines
        self._device = device
        self._budget = budget_bytes
        self._sizes: dict[Member, int] = {}  # bytes of all, the oldest first
        self._parked: set[Member] = set()
        self._device_bytes = 0

    @property
    def parked(self) -> Collection[Member]:
        """Whose generation rests in host memory."""
        return self._parked

    def add(self, member: Member) -> None:
        """Note a newcomer, whose generation is on the device."""
        assert member.generation is not None
        self._sizes[member] = member.generation.nbytes
        self._device_bytes += self._sizes[member]

    def discard(self, member: Member) -> None:
        """Forget a member, if it is known: its generation is gone, or soon will be."""
        size = self._sizes.pop(member, None)
        if size is None:
            return
        # The batch that stepped last may hold what was computed for it.
        self._pipelines[member.job.model].drop_batch()
        if member in self._parked:
            self._parked.remove(member)
        else:
            self._device_bytes -= size

    def fetch(self, members: Iterable[Member]) -> None:
        """Bring back those that are to be computed with. Raises what running out of memory does."""
        for member in members:
            if member in self._parked and member.generation is not None:
                member.generation.to(self._device.torch_device)
                self._parked.remove(member)
                self._device_bytes += self._sizes[member]

    def settle(self, active: Collection[Member]) -> None:
        """Move waiting generations out, the least urgent first, until the rest is within budget.

        `active` ones take part in the next step and do not count.
        """
        if self._device_bytes <= self._budget:
            return
        waiting = self._waiting(active)
        excess = sum(self._sizes[m] for m in waiting) - self._budget
        while waiting and excess > 0:
            member = waiting.pop()
            excess -= self._sizes[member]
            if not self._park(member):
                return

    def clear(self, active: Collection[Member]) -> None:
        """Move all but the `active` generations out, where that gives the device memory back."""
        if math.isfinite(self._budget):
            for member in reversed(self._waiting(active)):
                if not self._park(member):
                    return

    def _waiting(self, active: Collection[Member]) -> list[Member]:
        """On the device and not `active`, the most urgent first."""
        here = [m for m in self._sizes if m not in self._parked and m not in active]
        return sorted(here, key=lambda m: RANKS[m.job.priority])

    def _park(self, member: Member) -> bool:
        generation = member.generation
        assert generation is not None
        error = attempt(partial(generation.to, HOST))
        if isinstance(error, Exception):
            log.warning("could not move to host memory", job=member.job.id, error=str(error))
            return False
        self._pipelines[member.job.model].drop_batch()
        self._parked.add(member)
        self._device_bytes -= self._sizes[member]
        return True
