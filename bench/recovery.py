"""kill -9 in the middle of a long job: how soon another worker goes on, from where, to what bytes.

Runs API, keeper and two workers as a deployment does. Each round submits the same deterministic
job, kills the worker that holds it once it has taken a number of steps, follows the job to its end,
and replaces the dead worker while nothing is measured. The other worker is warm: it has the model
in memory and is idle. Times of events are those written into them, on this machine's clock.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from redis import Redis

from bench.run import table
from denoised.client import Client, ClientError, JobEvent
from jobs import keys
from jobs.connections import connect
from jobs.embedded_redis import EmbeddedRedis
from jobs.worker_registry import WorkerInfo

READY_SECONDS = 180.0
PROMPT = "a red circle moving right on a blue background"


def run(
    model: str = "wan-vace-demo", *, rounds: int = 20, checkpoint_seconds: float = 1.0
) -> dict[str, Any]:
    """Figures for `model`, a bundled id or a checkpoint folder, over so many kills. Seconds."""
    with _deployment(model, checkpoint_seconds) as here:
        here.two_idle_workers()
        unbroken, seconds = here.follow(here.submit())
        kill_at = max(1, int(0.6 * here.steps))
        kills = []
        for _ in range(rounds):
            here.two_idle_workers()
            kills.append(here.kill(kill_at, unbroken))
        identical = sum(kill.is_identical for kill in kills)
        return {
            "model": here.model,
            "steps": here.steps,
            "unbroken_seconds": seconds,
            "checkpoint_seconds": checkpoint_seconds,
            "killed_after_step": kill_at,
            "rounds": rounds,
            "from_kill_to": {
                "requeued": _spread([kill.requeued for kill in kills]),
                "first_new_step": _spread([kill.first_new_step for kill in kills]),
            },
            "steps_saved": _spread([kill.resumed_steps for kill in kills]),
            "steps_taken_again": _spread([kill.lost_steps for kill in kills]),
            "identical_to_the_unbroken_run": f"{identical} of {rounds}",
        }


@dataclass(frozen=True)
class _Kill:
    """One round: seconds since the kill, steps, and whether the outputs are the expected ones."""

    requeued: float
    first_new_step: float
    resumed_steps: int
    lost_steps: int
    is_identical: bool


class _Deployment:
    """API, keeper and workers over one Redis; `start` makes a process of the command given."""

    def __init__(
        self, client: Client, redis: Redis, start: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        self._client = client
        self._redis = redis
        self._start = start
        self._workers: list[subprocess.Popen[bytes]] = []
        offered = client.models().data[0]
        self.model = offered.id
        self.steps = int(offered.limits["num_inference_steps"]["maximum"])

    def two_idle_workers(self) -> None:
        """Returns when two living workers hold the model and have nothing to do."""
        self._workers = [worker for worker in self._workers if worker.poll() is None]
        while len(self._workers) < 2:
            self._workers.append(self._start("worker"))
        pids = {worker.pid for worker in self._workers}

        def are_idle() -> bool:
            texts = [self._redis.hget(name, "denoised") for name in self._names()]
            known = [WorkerInfo.model_validate_json(text) for text in texts if text]  # type: ignore[arg-type]
            return pids <= {worker.pid for worker in known if worker.state == "idle"}

        _until(are_idle)

    def submit(self) -> str:
        """The same job every time, with the most steps that the model allows."""
        asked = {"prompt": PROMPT, "seed": 7, "num_inference_steps": self.steps}
        return self._client.submit(self.model, asked, deterministic=True).id

    def follow(self, job_id: str) -> tuple[list[str], float]:
        """Digests of the outputs of a job, and how long it ran."""
        events = list(self._client.watch(job_id))
        started = next(event for event in events if event.type == "job.started")
        return self._digests(job_id, events[-1]), _at(events[-1]) - _at(started)

    def kill(self, step: int, expected: list[str]) -> _Kill:
        """Kill the worker of a new job once `step` steps are taken and follow it to its end."""
        job_id = self.submit()
        killed = requeued = first_new_step = 0.0
        pid = reached = resumed = 0
        for event in self._client.watch(job_id):
            done = (event.data.get("progress") or {}).get("step", 0)
            if event.type == "job.started" and not killed:
                pid = int(event.data["worker"].split(".")[-2])
            elif not killed and done >= step:
                os.kill(pid, signal.SIGKILL)
                killed = time.time()
            if event.type == "job.requeued":
                requeued, resumed = _at(event) - killed, event.data["step"]
            elif not requeued:
                reached = max(reached, done)
            elif not first_new_step and done > resumed:
                first_new_step = _at(event) - killed
        if not first_new_step:
            raise RuntimeError(f"{job_id} ended as {event.type} without a second attempt")
        identical = self._digests(job_id, event) == expected
        return _Kill(requeued, first_new_step, resumed, reached - resumed, identical)

    def _digests(self, job_id: str, last: JobEvent) -> list[str]:
        if last.type != "job.succeeded":
            raise RuntimeError(f"{job_id} ended as {last.type}: {last.data.get('error')}")
        return [output.sha256 for output in self._client.get(job_id).outputs]

    def _names(self) -> list[bytes]:
        return sorted(self._redis.smembers(keys.WORKERS))  # type: ignore[arg-type]


@contextmanager
def _deployment(model: str, checkpoint_seconds: float) -> Iterator[_Deployment]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="denoised-bench-")))
        server = stack.enter_context(EmbeddedRedis.start(folder / "redis"))
        log = stack.enter_context((folder / "log").open("wb"))
        environment = os.environ | {
            "DENOISED_REDIS_URL": server.url,
            "DENOISED_DATA_DIR": str(folder),
            "DENOISED_MODELS": model,
            "DENOISED_WORKERS": "2",
            "DENOISED_LOG_LEVEL": "warning",
            "DENOISED_CHECKPOINT_SECONDS": str(checkpoint_seconds),
        }

        def start(*command: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", "denoised", *command],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(_stop, process)
            return process

        port = _free_port()
        start("api", "--port", str(port))
        start("keeper")
        client = stack.enter_context(Client(f"http://127.0.0.1:{port}"))
        _until(lambda: bool(client.models().data))
        yield _Deployment(client, stack.enter_context(connect(server.url)), start)


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except ClientError:
            pass  # not listening yet
        time.sleep(0.1)
    raise RuntimeError(f"not ready within {READY_SECONDS:g} s")


def _at(event: JobEvent) -> float:
    return datetime.fromisoformat(event.data["created_at"]).timestamp()


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "min": ordered[0],
        "p50": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "max": ordered[-1],
    }


def main() -> None:
    """Print the figures for one model."""
    parser = argparse.ArgumentParser(prog="python -m bench.recovery", description=__doc__)
    parser.add_argument("--model", default="wan-vace-demo", help="bundled id or checkpoint folder")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--checkpoint-seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    figures = run(
        arguments.model, rounds=arguments.rounds, checkpoint_seconds=arguments.checkpoint_seconds
    )
    print(table(figures))


if __name__ == "__main__":
    main()
