"""When a worker loads another model, and which ones make room: pure functions, no I/O.

A worker serves more models than fit on its device. Jobs of resident ("warm") models are taken at
once; `model_to_load` says when those of a "cold" one have waited long enough to be worth a switch,
`models_to_evict` which resident models have to go for it.

Guarantees, held by tests:
- nothing is loaded while nothing waits for it, and nothing is evicted that need not be;
- a worker that has work switches at most once in `patience` seconds;
- of the cold models with a job that could be claimed, the one whose job has waited longest comes
  first, so with C cold models such a job waits for at most C switches: `patience`, a load and what
  the evicted models have in hand, each. A try that gets no job is no switch: it costs what those
  have in hand, at most once for each other model before the job is had.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

GRACE_SECONDS = 0.5
"""An idle worker leaves a job so long to others that hold its model already."""


@dataclass(frozen=True)
class Warm:
    """A resident model: bytes it takes, when it was last used, and seconds of work it has in hand.

    `last_used` is on any clock; `seconds_left` is None for a model without work.
    """

    model: str
    bytes: int
    last_used: float
    seconds_left: float | None


def model_to_load(
    waiting: Mapping[str, float],
    *,
    in_vain: Mapping[str, float],
    is_idle: bool,
    since_switch: float,
    patience: float,
) -> str | None:
    """The cold model to load now, if any, of those in `waiting`.

    Each stands there with the wait of its oldest job that could be claimed now. `in_vain` tells how
    long ago none was had for a model: it has waited no longer than that.

    An idle worker, which also found no job for its warm models, loads almost at once; a busy one
    only for jobs that have waited `patience`, and `patience` after the last switch. Seconds.
    """
    if not waiting:
        return None
    waits = {m: min(wait, in_vain.get(m, wait)) for m, wait in waiting.items()}
    model = max(sorted(waits), key=lambda m: (waits[m], m not in in_vain))
    if is_idle:
        return model if waits[model] >= GRACE_SECONDS else None
    return model if min(waits[model], since_switch) >= patience else None


def models_to_evict(warm: Iterable[Warm], *, needed: int, budget: int) -> tuple[str, ...]:
    """Which models make room for `needed` bytes within `budget`, the first to go first.

    Idle ones go before busy ones, of those the least recently used first, of busy ones those that
    are done soonest. All of them go when even that is not enough.
    """
    warm = list(warm)
    order = sorted(
        warm,
        key=lambda w: (w.seconds_left is not None, w.seconds_left or 0.0, w.last_used, w.model),
    )
    free = budget - sum(w.bytes for w in warm)
    evicted: list[Warm] = []
    for candidate in order:
        if free >= needed:
            break
        evicted.append(candidate)
        free += candidate.bytes
    # Whatever the last ones to be chosen made unnecessary stays.
    for candidate in list(evicted):
        if free - candidate.bytes >= needed:
            evicted.remove(candidate)
            free -= candidate.bytes
    return tuple(w.model for w in evicted)
