"""Who takes the next denoise step: a pure function of what is resident, in three small rules.

The engine describes every job it holds as a `Resident` and asks `schedule` at each step boundary
which of them step together, `by_urgency` which finished one is decoded first, and `open_ranks`
which classes of queued jobs it may claim. Nothing here does I/O, keeps state or knows a tensor.

1. The most urgent class leads; within a class the oldest.
2. Compatible residents fill the leader's batch: equal `batch_key`, not exclusive, as many images
   as the measured limit allows. Members of a less urgent class ride only where they are free, that
   is, where the larger step takes hardly longer.
3. A resident passed over for `PATIENCE` turns is overdue and leads before every class, longest
   wait first.

Guarantees, held by property tests, with R the most residents seen at once:
- a step boundary with residents never passes without a step;
- a resident that is never overdue is led only by a class at least as urgent, and an urgent newcomer
  leads the very next step unless someone is overdue;
- nobody is passed over more than PATIENCE + R - 1 turns in a row. (Whoever is ahead of an overdue
  resident has waited longer; leading sends it to the back, and nobody can overtake later.)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

PATIENCE = 8
"""Turns without a step after which a resident is overdue."""

LOOK_AHEAD = 4
"""Residents that may stand outside the next batch before nobody else is claimed to fill it."""


@dataclass(frozen=True, slots=True)
class Resident:
    """One job in memory, as far as scheduling cares.

    `rank` is the class (0 is the most urgent), `arrival` a number that grows with every admission,
    `num_images` at least 1, `exclusive` asks for a batch of its own, `waited` counts the turns
    since it was last chosen.
    """

    id: str
    batch_key: Hashable
    rank: int
    arrival: int
    num_images: int = 1
    exclusive: bool = False
    waited: int = 0

    @property
    def is_overdue(self) -> bool:
        """True when ageing puts it before every class."""
        return self.waited >= PATIENCE


class Limits(Protocol):
    """How large a batch pays, per key; `workers.batch_limits.BatchLimits` measures it."""

    def limit(self, key: Hashable) -> int:
        """Images per step with the best throughput, at least 1."""

    def free(self, key: Hashable, images: int) -> int:
        """Images per step up to which a step of `images` grows hardly longer."""


def by_urgency(residents: Iterable[Resident]) -> list[Resident]:
    """All residents in the order in which they may lead."""
    return sorted(
        residents,
        key=lambda r: (-r.waited if r.is_overdue else 0, r.rank, r.arrival),
    )


def schedule(residents: Sequence[Resident], limits: Limits) -> tuple[Resident, ...]:
    """The members of the next step, its leader first; empty only when nothing is resident.

    A leader with more images than the limit steps all the same, alone.
    """
    if not residents:
        return ()
    leader, *others = by_urgency(residents)
    batch, images, urgent_images = [leader], leader.num_images, leader.num_images
    if leader.exclusive:
        return (leader,)
    for resident in others:
        if resident.exclusive or resident.batch_key != leader.batch_key:
            continue
        is_rider = resident.rank > leader.rank and not resident.is_overdue
        seats = limits.limit(leader.batch_key)
        if is_rider:
            seats = min(seats, limits.free(leader.batch_key, urgent_images))
        if images + resident.num_images > seats:
            continue
        batch.append(resident)
        images += resident.num_images
        if not is_rider:
            urgent_images += resident.num_images
    return tuple(batch)


def open_ranks(
    residents: Sequence[Resident], limits: Limits, *, capacity: int, num_ranks: int
) -> int:
    """Classes that may be claimed now: every rank below the returned number.

    A job is claimed only for a free seat in the next batch, so that what cannot run yet stays
    queued, where another worker can take it. Whether a queued job fits that batch shows only once
    it is here; after `LOOK_AHEAD` that do not fit, the seat stays free. A class more urgent than
    all residents may always come in and lead. From `capacity` resident images on nobody may.
    """
    if sum(r.num_images for r in residents) >= capacity:
        return 0
    batch = schedule(residents, limits)
    if not batch:
        return num_ranks
    leader = batch[0]
    seats = 1 if leader.exclusive else limits.limit(leader.batch_key)
    left_out = len(residents) - len(batch)
    if sum(r.num_images for r in batch) < seats and left_out < LOOK_AHEAD:
        return num_ranks
    return min(r.rank for r in residents)
