"""kill -9 in the middle of a long job: how soon another worker goes on, from where, to what bytes.

Twice: where workers run by themselves, so that only a lapsed lease tells of the death, as when a
host is lost; and below `denoised serve`, whose supervisor sees its workers end. Each round submits
the same deterministic job, kills the worker that holds it once it has taken a number of steps, and
follows the job to its end; nothing is measured while the dead worker is replaced. The other worker
is warm: it has the model in memory and is idle. To hold: the outputs are those of the unbroken run,
and where there was time for a checkpoint no job starts again from zero.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bench.deployments import Deployment, at, bare, served, spread
from bench.goals import Goal, at_most, none
from bench.run import report
from denoised.client import JobEvent

WORKERS = 2
MOST_STEPS = 300
KILL_AFTER = 0.6
"""Of the steps of a job."""

CHECKPOINT_SECONDS = 0.2
"""Ten by default; a job of the bundled model takes seconds, though, and not minutes."""

GOING_ON_WITHIN_SECONDS = 8.0
"""Of the kill: a lease of six seconds, and finding the job."""

PROMPT = "a red circle moving right on a blue background"


def run(
    model: str = "wan-vace-demo",
    *,
    rounds: int = 20,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, Any]:
    """Figures for `model`, a bundled id or a checkpoint folder, in seconds; so many kills each."""
    environment = {"DENOISED_CHECKPOINT_SECONDS": str(checkpoint_seconds)}
    with bare(model, WORKERS, **environment) as here:
        by_lease = _measure(here, rounds)
    with served(model, WORKERS, **environment) as here:
        by_supervisor = _measure(here, rounds)
    return {
        "model": here.model,
        "steps": _steps(here),
        "checkpoint_seconds": checkpoint_seconds,
        "rounds": rounds,
        "worker_by_itself": by_lease,
        "worker_below_serve": by_supervisor,
        "goals": [
            *_goals("by itself", by_lease, checkpoint_seconds),
            *_goals("below serve", by_supervisor, checkpoint_seconds),
        ],
    }


@dataclass(frozen=True)
class _Kill:
    """One round: seconds since the kill, steps, and whether the outputs are the expected ones."""

    cause: str
    requeued: float
    first_new_step: float
    resumed_steps: int
    lost_steps: int
    is_identical: bool


def _measure(here: Deployment, rounds: int) -> dict[str, Any]:
    here.await_workers(WORKERS, "idle")
    unbroken, seconds = _follow(here, _submit(here))
    kill_at = max(1, int(KILL_AFTER * _steps(here)))
    kills = []
    for _ in range(rounds):
        here.await_workers(WORKERS, "idle")
        kills.append(_kill(here, kill_at, unbroken))
    identical = sum(kill.is_identical for kill in kills)
    return {
        "unbroken_seconds": seconds,
        "killed_after_step": kill_at,
        "causes": dict(Counter(kill.cause for kill in kills)),
        "from_kill_to": {
            "requeued": spread([kill.requeued for kill in kills]),
            "first_new_step": spread([kill.first_new_step for kill in kills]),
        },
        "steps_saved": spread([kill.resumed_steps for kill in kills]),
        "steps_taken_again": spread([kill.lost_steps for kill in kills]),
        "restarted_from_zero": sum(kill.resumed_steps == 0 for kill in kills),
        "not_identical_to_the_unbroken_run": rounds - identical,
    }


def _goals(where: str, figures: dict[str, Any], checkpoint_seconds: float) -> list[Goal]:
    goals = [none(f"outputs that differ, {where}", figures["not_identical_to_the_unbroken_run"])]
    if KILL_AFTER * figures["unbroken_seconds"] > 2 * checkpoint_seconds:
        goals.append(none(f"restarts from zero, {where}", figures["restarted_from_zero"]))
    p95 = figures["from_kill_to"]["first_new_step"]["p95"]
    goals.append(at_most(f"kill to the next step, p95 s, {where}", p95, GOING_ON_WITHIN_SECONDS))
    return goals


def _steps(here: Deployment) -> int:
    """As many as the model allows, unless that is very many."""
    return min(here.most_steps, MOST_STEPS)


def _submit(here: Deployment) -> str:
    """The same job every time."""
    asked = {"prompt": PROMPT, "seed": 7, "num_inference_steps": _steps(here)}
    return here.client.submit(here.model, asked, deterministic=True).id


def _follow(here: Deployment, job_id: str) -> tuple[list[str], float]:
    """Digests of the outputs of a job, and how long it ran."""
    events = list(here.client.watch(job_id))
    started = next(event for event in events if event.type == "job.started")
    return _digests(here, job_id, events[-1]), at(events[-1]) - at(started)


def _kill(here: Deployment, step: int, expected: list[str]) -> _Kill:
    """Kill the worker of a new job once `step` steps are taken and follow it to its end."""
    job_id = _submit(here)
    cause = ""
    killed = requeued = first_new_step = 0.0
    pid = reached = resumed = 0
    for event in here.client.watch(job_id):
        done = (event.data.get("progress") or {}).get("step", 0)
        if event.type == "job.started" and not killed:
            pid = int(event.data["worker"].split(".")[-2])
        elif not killed and done >= step:
            os.kill(pid, signal.SIGKILL)
            killed = time.time()
        if event.type == "job.requeued":
            requeued, resumed, cause = at(event) - killed, event.data["step"], event.data["cause"]
        elif not requeued:
            reached = max(reached, done)
        elif not first_new_step and done > resumed:
            first_new_step = at(event) - killed
    if not first_new_step:
        raise RuntimeError(f"{job_id} ended as {event.type} without a second attempt")
    identical = _digests(here, job_id, event) == expected
    return _Kill(cause, requeued, first_new_step, resumed, reached - resumed, identical)


def _digests(here: Deployment, job_id: str, last: JobEvent) -> list[str]:
    if last.type != "job.succeeded":
        raise RuntimeError(f"{job_id} ended as {last.type}: {last.data.get('error')}")
    return [output.sha256 for output in here.client.get(job_id).outputs]


def main() -> int:
    """Print the figures for one model; 1 when something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.recovery", description=__doc__)
    parser.add_argument("--model", default="wan-vace-demo", help="bundled id or checkpoint folder")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--checkpoint-seconds", type=float, default=CHECKPOINT_SECONDS)
    arguments = parser.parse_args()
    figures = run(
        arguments.model, rounds=arguments.rounds, checkpoint_seconds=arguments.checkpoint_seconds
    )
    return report(figures)


if __name__ == "__main__":
    sys.exit(main())
