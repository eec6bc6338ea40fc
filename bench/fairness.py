"""One key floods the queue, another sends ten jobs: how long do the ten wait?

`denoised serve` with one worker and the fake model. The flood is there before the first of the ten
comes, in two shapes, and the ten have a third, so that none of them can ride in a batch of the
flood's. They come one by one, each a random part of a job's time after the end of the one before.
The wait is from acceptance to when the worker takes the job up, and to its first step, in units of
what a job takes that has the server to itself. Goal: p95 of both at most two job times. To hold:
the flood has still jobs waiting at the end, else nothing was shown.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.deployments import at, served, spread
from bench.goals import at_most, holds
from bench.run import report
from denoised.client import Client, JobEvent

GOAL_JOB_TIMES = 2.0
ALONE = 3
STEPS = 40
FLOOD_SIZES, OTHER_SIZE = (64, 128), 96


def run(flood: int = 1000, others: int = 10, seed: int = 0) -> dict[str, Any]:
    """Waits of the `others` in job times and in seconds."""
    draw = random.Random(seed)
    with (
        served("fake", workers=1) as here,
        here.client_with_key("floods") as flooder,
        here.client_with_key("sends few") as sender,
    ):
        runs = [_watched(sender, number) for number in range(ALONE)]
        job_seconds = statistics.median(at(events[-1]) - at(events[0]) for events in runs)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: _submit(flooder, n, draw.choice(FLOOD_SIZES)), range(flood)))
        runs = []
        for number in range(ALONE, ALONE + others):
            time.sleep(draw.uniform(0.0, job_seconds))
            runs.append(_watched(sender, number))
        waiting = flooder.list(status="queued", limit=1).data
    waits = {
        "taken up": [_wait(events, lambda e: e.type == "job.started") for events in runs],
        "first step": [_wait(events, _is_denoising) for events in runs],
    }
    rows = [_row(until, seconds, job_seconds) for until, seconds in waits.items()]
    return {
        "flood": flood,
        "others": others,
        "job_alone_seconds": job_seconds,
        "wait": rows,
        "goals": [
            *(
                at_most(f"{row['until']}, p95 in job times", row["p95_job_times"], GOAL_JOB_TIMES)
                for row in rows
            ),
            holds("the flood still waits at the end", bool(waiting)),
        ],
    }


def _submit(client: Client, number: int, size: int) -> str:
    fields = {"seed": number, "num_inference_steps": STEPS, "width": size, "height": size}
    return client.submit("fake", {"prompt": f"take {number}", **fields}).id


def _watched(client: Client, number: int) -> list[JobEvent]:
    """The events of a job of the third shape, from its acceptance to its end."""
    events = list(client.watch(_submit(client, number, OTHER_SIZE)))
    if events[-1].type != "job.succeeded":
        raise RuntimeError(f"a job ended as {events[-1].type}: {events[-1].data.get('error')}")
    return events


def _is_denoising(event: JobEvent) -> bool:
    return event.data["stage"] == "denoising"


def _wait(events: Sequence[JobEvent], is_over: Callable[[JobEvent], bool]) -> float:
    """Seconds from acceptance."""
    return next(at(event) for event in events if is_over(event)) - at(events[0])


def _row(until: str, seconds: Sequence[float], job_seconds: float) -> dict[str, Any]:
    figures = spread(seconds)
    return {
        "until": until,
        "p50_job_times": figures["p50"] / job_seconds,
        "p95_job_times": figures["p95"] / job_seconds,
        "p95_seconds": figures["p95"],
        "max_seconds": figures["max"],
    }


def main() -> int:
    """Print the figures; 1 when nothing was shown."""
    parser = argparse.ArgumentParser(prog="python -m bench.fairness", description=__doc__)
    parser.add_argument("--flood", type=int, default=1000)
    parser.add_argument("--others", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    return report(run(arguments.flood, arguments.others, arguments.seed))


if __name__ == "__main__":
    sys.exit(main())
