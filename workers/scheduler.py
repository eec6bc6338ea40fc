"""Who takes the next denoise step: pure functions of the roster, in three small rules.

The engine keeps every job that can step in a `Roster` and asks `schedule` at each step boundary
which of them step together. A second roster holds the finished ones; `leader` says which of them is
decoded first. `open_ranks` tells which classes of queued jobs may be claimed. Nothing here does
I/O, keeps state or knows a tensor, and no answer takes longer because more are resident.

1. The most urgent class leads; within a class the oldest.
2. Compatible residents fill the leader's batch: equal `batch_key`, not exclusive, as many images
   as the measured limit allows. Members of a less urgent class ride only where they are free, that
   is, where the larger step takes hardly longer.
3. Ageing: a resident passed over for `PATIENCE` turns is overdue. Whoever has waited longest then
   leads before its class, but only directly after a step for the most urgent class there is.

Guarantees, held by property tests, with R the most residents seen at once and C the classes:
- No idling: a step boundary with residents never passes without a step.
- No inversion beyond one step: a resident there at two boundaries in a row never sees less urgent
  classes lead both. So a newcomer more urgent than what runs leads the very next step, and where
  ageing delays an urgent resident, it does so by a single step.
- No starvation: nobody is passed over more than PATIENCE + C * R - 1 turns in a row. (Whoever
  stands before an overdue resident has waited longer; leading sends it to the back, and nobody
  overtakes. Rule 3 holds the first of them up only for steps of ever more urgent classes, C - 1 at
  most.)
- No seat is wasted: a compatible resident that fits, and is not too patient to ride, is left out
  only when `MISFITS` of its company before it did not fit.
- No lock-out: a class more urgent than all residents may be claimed, however full the roster is.
  One job of each class is the most that comes of it: with M images in the largest job, residents
  never have more than capacity - 1 + C * M. (Whoever is claimed beyond the capacity is more urgent
  than all who are there, so of those at most C - 1 are there at a time.)
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from workers.roster import Resident, Roster

PATIENCE = 8
"""Turns without a step after which a resident is overdue."""

LOOK_AHEAD = 4
"""Residents that may stand outside the next batch before nobody else is claimed to fill it."""

MISFITS = 16
"""Compatible residents without a seat that are passed before a batch is left as it is."""


class Limits(Protocol):
    """How large a batch pays, per key; `workers.batch_limits.BatchLimits` measures it."""

    def limit(self, key: Hashable) -> int:
        """Images per step with the best throughput, at least 1."""

    def free(self, key: Hashable, images: int) -> int:
        """Images per step up to which a step of `images` grows hardly longer."""


def leader(roster: Roster) -> Resident | None:
    """Whose turn it is; None only when nobody is resident."""
    if not roster:
        return None
    top, aged = roster.most_urgent(), roster.longest_waiting()
    top_was_served = roster.last_rank <= top.rank
    if _is_overdue(roster, aged) and (aged.rank == top.rank or top_was_served):
        return aged
    return top


def schedule(roster: Roster, limits: Limits) -> tuple[Resident, ...]:
    """The members of the next step, its leader first; empty only when nobody is resident.

    A leader with more images than the limit steps all the same, alone.
    """
    first = leader(roster)
    if first is None:
        return ()
    batch, images, urgent_images, misfits = [first], first.num_images, first.num_images, 0
    seats = limits.limit(first.batch_key)
    free: int | None = None
    for resident in roster.company(first):
        if images >= seats or misfits >= MISFITS:
            break
        if resident is first:
            continue
        is_rider = resident.rank > first.rank and not _is_overdue(roster, resident)
        if is_rider and free is None:
            free = min(seats, limits.free(first.batch_key, urgent_images))
        if images + resident.num_images > (free if is_rider and free is not None else seats):
            misfits += 1
            continue
        batch.append(resident)
        images += resident.num_images
        if not is_rider:
            urgent_images += resident.num_images
            free = None
    return tuple(batch)


def open_ranks(roster: Roster, limits: Limits, *, capacity: int, num_ranks: int) -> int:
    """Classes that may be claimed now: every rank below the returned number.

    A job is claimed only for a free seat in the next batch, so that what cannot run yet stays
    queued, where another worker can take it. Whether a queued job fits that batch shows only once
    it is here; after `LOOK_AHEAD` that do not fit, and from `capacity` resident images on, the seat
    stays free. A class more urgent than all residents may always come in and lead, unless
    `capacity` is 0 or less: what has left the roster, but not the engine, takes all the room.
    """
    if capacity <= 0:
        return 0
    batch = schedule(roster, limits)
    if not batch:
        return num_ranks
    seats = 1 if batch[0].exclusive else limits.limit(batch[0].batch_key)
    has_seat = sum(r.num_images for r in batch) < seats
    left_out = len(roster) - len(batch)
    if has_seat and left_out < LOOK_AHEAD and roster.num_images < capacity:
        return num_ranks
    return roster.most_urgent().rank


def _is_overdue(roster: Roster, resident: Resident) -> bool:
    return roster.waited(resident) >= PATIENCE
