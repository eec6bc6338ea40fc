"""A whole server, started as a person starts it, with a model too small to show anything."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from denoised import instance
from denoised.client import Client, ClientError
from tests.models.tiny import write_checkpoint

# Long enough for a busy machine; reached only when something is broken.
PATIENCE_SECONDS = 120.0

LONG_STEPS = 300
LONG = {"prompt": "a long job", "num_inference_steps": LONG_STEPS}

ENDLESS_STEPS = 20_000
"""A minute's work at least: more than any test waits for before it cancels."""

FAST = {
    "DENOISED_LEASE_SECONDS": "2",
    "DENOISED_HEARTBEAT_SECONDS": "0.5",
    "DENOISED_REAP_SECONDS": "0.1",
    "DENOISED_DEVICE": "cpu",
    "OMP_NUM_THREADS": "1",
    "NO_COLOR": "1",
    "COLUMNS": "200",
}


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without its DENOISED_* variables, with short leases."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("DENOISED_")}
    return clean | FAST | changes


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for `condition`, failing the test with `what` if it never holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def denoised(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "denoised", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(**env),
        check=False,
        timeout=PATIENCE_SECONDS,
    )


@dataclass
class RunningServer:
    """A `denoised serve` of this test run."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    log: Path

    @property
    def url(self) -> str:
        owner = instance.find(self.data_dir)
        assert owner is not None, self.log.read_text()
        return owner.url

    def children(self) -> list[psutil.Process]:
        """Every living process below the supervisor, Redis included."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def child(self, command: str) -> psutil.Process:
        """The process of a subcommand, e.g. "worker"; "redis" is the Redis server."""
        for process in self.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                is_redis = process.name() in ("valkey-server", "redis-server")
                if is_redis if command == "redis" else command in process.cmdline():
                    return process
        raise AssertionError(f"no {command} among {self.children()}")

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        if instance.find(self.data_dir) is None:
            return False
        with Client(self.url) as client, contextlib.suppress(ClientError):
            return client.readiness().status == "ready"
        return False


@contextlib.contextmanager
def serving(data_dir: Path, checkpoint: Path, **env: str) -> Iterator[RunningServer]:
    """A ready server on a free port; killed with everything below it at the end."""
    log = data_dir.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "denoised", "serve", "--port", "0"),
                *("--data-dir", str(data_dir), "--model", str(checkpoint)),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(**env),
            start_new_session=True,
        )
    server = RunningServer(process, data_dir, log)
    try:
        until(server.is_ready, "the server is ready")
        yield server
    finally:
        remaining = server.children()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_SECONDS)
        for survivor in [*remaining, process]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                survivor.kill()
        process.wait()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Sana checkpoint of the id "tiny", which can be asked for jobs of many seconds."""
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")
    (folder / "denoised.json").write_text('{"num_inference_steps": {"maximum": 20000}}')
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[RunningServer]:
    """One server for the tests of a module that leave it as it was."""
    with serving(tmp_path_factory.mktemp("server") / "data", checkpoint) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.url) as connected:
        yield connected
