"""What a scheduling decision costs with 10, 100 and 1,000 generations resident.

One decision is everything the scheduler does at a step boundary: choosing the batch (`schedule`),
which classes may be claimed (`open_ranks`), booking the step (`advance`); and for every tenth a
departure and an arrival. The limits are those that the engine uses, measured and settled. Medians
and means over all decisions, in microseconds of this machine. Goal: a median of at most 50 at
1,000; the 99th percentile, in which the machine's other work shows, stands beside it.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from bench.goals import at_most
from workers.batch_limits import BatchLimits
from workers.roster import Resident, Roster
from workers.scheduler import open_ranks, schedule

SIZES = (10, 100, 1000)
DECISIONS = 5000
GOAL_US = 50.0

_KEYS = {
    "one shape, one class": (1, 1),
    "8 shapes, 3 classes": (8, 3),
    "a shape each, 3 classes": (10**9, 3),
}


def run(decisions: int = DECISIONS) -> dict[str, Any]:
    """Microseconds per decision by number of residents and by how alike they are."""
    rows = [
        {"residents": count, "load": name, **_measure(count, keys, ranks, decisions)}
        for count in SIZES
        for name, (keys, ranks) in _KEYS.items()
    ]
    most = [row for row in rows if row["residents"] == SIZES[-1]]
    worst, worst_p99 = (max(row[name] for row in most) for name in ("p50_us", "p99_us"))
    return {
        "decisions": rows,
        "worst_p50_us_at_1000": worst,
        "worst_p99_us_at_1000": worst_p99,
        "goals": [at_most("p50 at 1,000 residents, us", worst, GOAL_US)],
    }


def _measure(count: int, keys: int, ranks: int, decisions: int) -> dict[str, float]:
    limits = _settled_limits(min(keys, count))
    roster = Roster()

    def newcomer(number: int) -> Resident:
        key = ("model", 32, number % keys)
        return Resident(f"execution{number}", key, number % ranks, 1 + number % 3)

    number = 0
    while len(roster) < count:
        roster.add(newcomer(number))
        number += 1
    seconds = []
    for turn in range(decisions):
        started = time.perf_counter()
        batch = schedule(roster, limits)
        open_ranks(roster, limits, capacity=10**9, num_ranks=3)
        roster.advance(batch)
        if turn % 10 == 0:
            roster.discard(batch[0].id)
            roster.add(newcomer(number))
            number += 1
        seconds.append(time.perf_counter() - started)
    ordered = sorted(seconds)
    return {
        "p50_us": 1e6 * statistics.median(ordered),
        "mean_us": 1e6 * statistics.fmean(ordered),
        "p99_us": 1e6 * ordered[int(0.99 * len(ordered))],
    }


def _settled_limits(keys: int) -> BatchLimits:
    """Limits of 8 images a step for every key, where a larger step takes hardly longer."""
    limits = BatchLimits(8)
    for number in range(min(keys, 512)):
        for _ in range(40):
            key = ("model", 32, number)
            limits.observe(key, limits.limit(key), 0.1)
    return limits


def main() -> int:
    """Print the figures."""
    from bench.run import report

    return report(run())


if __name__ == "__main__":
    sys.exit(main())
