"""Whole deployments for benchmarks, as a user or an operator starts them, and waiting for them.

`serve` is one machine under its supervisor. `Deployment` is one whose workers a benchmark may stop:
they run by themselves beside an API and a keeper, or below `denoised serve`, over a Redis of the
benchmark's own. Times of events are those written into them, on this machine's clock.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from redis import Redis

from denoised import instance
from denoised.client import Client, ClientError, JobEvent
from jobs import keys
from jobs.api_keys import KeyStore
from jobs.connections import connect
from jobs.embedded_redis import EmbeddedRedis
from jobs.worker_registry import WorkerInfo

READY_SECONDS = 300.0


def until(condition: Callable[[], bool], log: Path) -> None:
    """Returns once `condition` holds. Raises RuntimeError, with what `log` says, if it never does.

    A server that does not answer yet counts as not ready.
    """
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except ClientError:
            pass  # not listening yet
        time.sleep(0.1)
    raise RuntimeError(f"not ready within {READY_SECONDS:g} s:\n{log.read_text()}")


def at(event: JobEvent) -> float:
    """When it happened, in seconds since the epoch."""
    return datetime.fromisoformat(event.data["created_at"]).timestamp()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, middle, 95th percentile and most."""
    ordered = sorted(values)
    return {
        "min": ordered[0],
        "p50": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "max": ordered[-1],
    }


@contextmanager
def serve(model: str, *arguments: str, **environment: str) -> Iterator[tuple[Client, Path]]:
    """`denoised serve` in a folder of its own, ready; its client and its log."""
    with tempfile.TemporaryDirectory(prefix="denoised-bench-") as name:
        folder = Path(name)
        log = folder / "server.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "denoised", "serve", "--port", "0"),
                    *("--model", model, "--data-dir", name, "--log-level", "warning"),
                    *arguments,
                ],
                env=os.environ | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            with Client(_url(process, folder, log)) as client:
                until(lambda: client.readiness().status == "ready", log)
                yield client, log
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _url(process: subprocess.Popen[bytes], folder: Path, log: Path) -> str:
    def started() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended:\n{log.read_text()}")
        return instance.find(folder) is not None

    until(started, log)
    owner = instance.find(folder)
    assert owner is not None
    return owner.url


class Deployment:
    """A running one. `model` is the id under which it offers the model, `most_steps` its limit.

    `start` runs a subcommand as a process of its own, and is None below `denoised serve`, which
    replaces its workers by itself. `workers` are those started here, oldest first.
    """

    def __init__(
        self,
        client: Client,
        redis: Redis,
        log: Path,
        start: Callable[..., subprocess.Popen[bytes]] | None = None,
    ) -> None:
        self.client = client
        self.workers: list[subprocess.Popen[bytes]] = []
        self.log = log
        self._redis = redis
        self._start = start
        offered = client.models().data[0]
        self.model = offered.id
        self.most_steps = int(offered.limits["num_inference_steps"]["maximum"])

    def client_with_key(self, name: str) -> Client:
        """A client of its own for a key made now; from then on, others get 401."""
        _, token = KeyStore(self._redis).create(name)
        return Client(self.client.url, api_key=token)

    def await_workers(self, count: int, *states: str) -> None:
        """Returns when `count` living workers are in one of `states`; starts those that lack."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while self._start is not None and len(self.workers) < count:
            self.workers.append(self._start("worker"))
        self.until(lambda: sum(state in states for state in self.states().values()) >= count)

    def states(self) -> dict[int, str]:
        """What the living workers do, by process id, as they said last."""
        names = sorted(self._redis.smembers(keys.WORKERS))  # type: ignore[arg-type]
        texts = [self._redis.hget(name, "denoised") for name in names]
        known = [WorkerInfo.model_validate_json(text) for text in texts if text]  # type: ignore[arg-type]
        return {worker.pid: worker.state for worker in known if _lives(worker.pid)}

    def until(self, condition: Callable[[], bool]) -> None:
        """Returns once `condition` holds."""
        until(condition, self.log)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def served(model: str, workers: int, **environment: str) -> Iterator[Deployment]:
    """`workers` of them below `denoised serve`."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="denoised-bench-"))
        server = stack.enter_context(EmbeddedRedis.start(Path(folder) / "redis"))
        client, log = stack.enter_context(
            serve(model, "--workers", str(workers), "--redis-url", server.url, **environment)
        )
        yield Deployment(client, stack.enter_context(connect(server.url)), log)


@contextmanager
def bare(model: str, workers: int, **environment: str) -> Iterator[Deployment]:
    """API and keeper as processes of their own; the workers are started when waited for."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="denoised-bench-")))
        server = stack.enter_context(EmbeddedRedis.start(folder / "redis"))
        log = folder / "log"
        file = stack.enter_context(log.open("wb"))
        everyone = os.environ | {
            "DENOISED_REDIS_URL": server.url,
            "DENOISED_DATA_DIR": str(folder),
            "DENOISED_MODELS": model,
            "DENOISED_WORKERS": str(workers),
            "DENOISED_LOG_LEVEL": "warning",
        }

        def start(*command: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", "denoised", *command],
                env=everyone | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            stack.callback(_kill, process)
            return process

        port = _free_port()
        start("api", "--port", str(port))
        start("keeper")
        client = stack.enter_context(Client(f"http://127.0.0.1:{port}"))
        until(lambda: bool(client.models().data), log)
        yield Deployment(client, stack.enter_context(connect(server.url)), log, start)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
