"""A worker in a process of its own, for tests that kill and freeze it.

`python lease_worker.py URL NAME STEPS SECONDS_PER_STEP` runs jobs until it is killed, and prints
what happens to it, one word a line.
"""

from __future__ import annotations

import sys
import time

from config.settings import Settings
from jobs.lease import LeaseClient
from jobs.types import ClaimedJob, Outcome, Progress, Stage, Status, Verdict

MODELS = ["test-model"]


def say(text: str) -> None:
    print(text, flush=True)


def run(worker: LeaseClient, job: ClaimedJob, steps: int, seconds: float) -> None:
    say(f"claimed {job.attempt}")
    for step in range(1, steps + 1):
        time.sleep(seconds)
        [verdict] = worker.report([Progress(job, Stage.DENOISING, step, steps)])
        if verdict is not Verdict.CONTINUE:
            say(verdict.value)
            if verdict is Verdict.CANCEL:
                worker.finish(job, Outcome(Status.CANCELLED))
            elif worker.finish(job, Outcome(Status.SUCCEEDED)):
                say("overwrote")
            return
        say(f"step {step}")
    say("finished" if worker.finish(job, Outcome(Status.SUCCEEDED)) else "fenced")


def main() -> None:
    url, name, steps, seconds = sys.argv[1:]
    worker = LeaseClient(
        url, Settings(redis_url=url, lease_seconds=1.0, heartbeat_seconds=0.5), name
    )
    say("ready")
    while True:
        for job in worker.claim(MODELS, 1):
            run(worker, job, int(steps), float(seconds))
        worker.wait_for_work(MODELS, 1.0)


if __name__ == "__main__":
    main()
