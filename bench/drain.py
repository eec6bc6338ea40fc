"""SIGTERM to one worker after the other under load: is anything late, lost, or done twice?

Two workers run beside an API and a keeper; jobs that take a moment, some seconds, and longer than
the grace for a drain are kept running and queued. Each round stops the older worker at a random
moment of its work and then replaces it. To hold: every exit has status 0 and comes within the
grace, every job succeeds at its first attempt, none starts again from zero, and no step is taken
twice.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from bench.deployments import Deployment, bare, spread
from bench.goals import Goal, holds, none
from bench.run import report
from denoised.client import JobEvent

WORKERS = 2
UNFINISHED = 12
LATE_SECONDS = 60.0
FAKE_STEP_SECONDS = 0.05
STEPS = (10, 60, 200)


def run(
    model: str = "fake", *, rounds: int = 20, drain_seconds: float = 8.0, seed: int = 0
) -> dict[str, Any]:
    """Figures for `model`, a bundled id or a checkpoint folder, over so many drains. Seconds."""
    with bare(model, WORKERS, DENOISED_DRAIN_SECONDS=str(drain_seconds)) as here:
        load = _Load(here, random.Random(seed))
        exits = [_drain(here, load, drain_seconds) for _ in range(rounds)]
        here.await_workers(WORKERS, "idle", "busy")
        outcomes = [load.outcome(job) for job in load.jobs]
    return {
        "model": here.model,
        "rounds": rounds,
        "grace_seconds": drain_seconds,
        "exit_seconds": spread([seconds for _, seconds in exits]),
        "jobs": len(outcomes),
        "handed_back": sum(outcome.handed_back for outcome in outcomes),
        "goals": _goals(exits, outcomes, drain_seconds),
    }


@dataclass(frozen=True)
class _Outcome:
    """What became of one job, in steps and counts."""

    is_lost: bool
    handed_back: int
    attempts_lost: int
    restarts: int
    steps_again: int


def _goals(
    exits: Sequence[tuple[int | None, float]], outcomes: Sequence[_Outcome], grace: float
) -> list[Goal]:
    late = sum(status != 0 or seconds > grace for status, seconds in exits)
    return [
        none("exits that were late or not with status 0", late),
        # Else nothing was shown.
        holds("jobs were handed back", any(outcome.handed_back for outcome in outcomes)),
        none("jobs lost", sum(outcome.is_lost for outcome in outcomes)),
        none("attempts lost", sum(outcome.attempts_lost for outcome in outcomes)),
        none("restarts from zero", sum(outcome.restarts for outcome in outcomes)),
        none("steps taken again", sum(outcome.steps_again for outcome in outcomes)),
    ]


class _Load:
    """Jobs of several lengths; some run alone, the others share steps."""

    def __init__(self, here: Deployment, draw: random.Random) -> None:
        self.draw = draw
        self.jobs: list[str] = []
        self._here = here
        self._numbers = count()

    def top_up(self) -> None:
        """See to it that as many jobs are running or queued as should be."""
        client = self._here.client
        unfinished = sum(
            len(client.list(status=status, limit=100).data) for status in ("queued", "running")
        )
        for _ in range(UNFINISHED - unfinished):
            self.jobs.append(self._submit(next(self._numbers)))

    def _submit(self, number: int) -> str:
        here = self._here
        steps = min(self.draw.choice(STEPS), here.most_steps)
        fields: dict[str, Any] = {"seed": number, "num_inference_steps": steps}
        if here.model == "fake":
            fields["step_seconds"] = FAKE_STEP_SECONDS
        prompt = f"a red circle moving right on a blue background, take {number}"
        alone = self.draw.random() < 0.25
        asked = {"prompt": prompt, **fields}
        return here.client.submit(here.model, asked, deterministic=alone).id

    def outcome(self, job_id: str) -> _Outcome:
        """Waits for the job's end."""
        events = list(self._here.client.watch(job_id))
        job = self._here.client.get(job_id)
        steps = int(job.input["num_inference_steps"])
        is_lost = events[-1].type != "job.succeeded"
        return _Outcome(
            is_lost=is_lost,
            handed_back=sum(event.data.get("cause") == "drained" for event in events),
            attempts_lost=job.attempt - 1,
            restarts=_restarts(events),
            steps_again=0 if is_lost else job.usage.steps - steps,
        )


def _restarts(events: list[JobEvent]) -> int:
    """How often steps that had been taken were all for nothing."""
    restarts = reached = 0
    for event in events:
        reached = max(reached, (event.data.get("progress") or {}).get("step", 0))
        came_back = event.type == "job.requeued" and event.data["step"] == 0 and reached > 0
        restarts += came_back or event.type == "job.restarted"
    return restarts


def _drain(here: Deployment, load: _Load, grace: float) -> tuple[int | None, float]:
    """Stop the older worker in the midst of work; its exit status, None if it had to be killed."""
    here.await_workers(WORKERS, "idle", "busy")
    load.top_up()
    victim = here.workers[0]
    here.until(lambda: here.states().get(victim.pid) == "busy")
    time.sleep(load.draw.uniform(0.0, 1.0))
    load.top_up()
    sent = time.monotonic()
    victim.send_signal(signal.SIGTERM)
    try:
        return victim.wait(grace + LATE_SECONDS), time.monotonic() - sent
    except subprocess.TimeoutExpired:
        victim.kill()
        return None, time.monotonic() - sent


def main() -> int:
    """Print the figures; 1 unless everything held."""
    parser = argparse.ArgumentParser(prog="python -m bench.drain", description=__doc__)
    parser.add_argument("--model", default="fake", help="bundled id or checkpoint folder")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--drain-seconds", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    return report(
        run(
            arguments.model,
            rounds=arguments.rounds,
            drain_seconds=arguments.drain_seconds,
            seed=arguments.seed,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
