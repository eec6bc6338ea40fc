"""The deployment under attack: Redis, workers, keepers and the API, each a process of its own.

What ends is started again, whatever the reason; every end is kept with what caused it, so that a
process that ended by itself can be told from one that was made to.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from jobs.embedded_redis import EmbeddedRedis
from tests.chaos.ends import End
from tests.chaos.launcher import launch, stops_file
from tests.chaos.plan import APIS, KEEPERS, KEYED_API, WORKERS

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.chaos.preload"])

POLL_SECONDS = 0.02
UP_SECONDS = 60.0
KILL_SECONDS = 45.0
"""Who has not stopped for so long is killed."""


@dataclass
class Member:
    """One place in the deployment and the process that fills it.

    `causes` to `log_start` are about this process: what was sent to end it, when it was first told
    to stop and whether it could know by then, and where its log begins.
    """

    name: str
    arguments: tuple[str, ...]
    env: dict[str, str]
    process: ForkServerProcess | None = None
    marker: Path | None = None
    causes: set[signal.Signals] = field(default_factory=set)
    told_at: float | None = None
    knew_how: bool = True
    log_start: int = 0

    @property
    def is_up(self) -> bool:
        """Whether the process lives and its hooks are in place."""
        return self.process is not None and self.marker is not None and self.marker.exists()


class Fleet:
    """Everything that runs; an async context manager. `urls` are where the APIs answer.

    `settings` are `DENOISED_*` variables without their prefix. `sabotage` switches a safeguard off
    in every process, see `launcher`.
    """

    def __init__(self, folder: Path, settings: dict[str, str], sabotage: str | None) -> None:
        self.folder = folder
        self.control = folder / "control"
        self.log_dir = folder / "logs"
        self.ends: list[End] = []
        self.starts: Counter[str] = Counter()
        ports = {name: _free_port() for name in APIS}
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        for made in (self.control, self.log_dir):
            made.mkdir(parents=True)
        self._sabotage = sabotage
        self.redis = EmbeddedRedis.start(folder / "redis")
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("DENOISED_")},
            **{f"DENOISED_{name}": value for name, value in settings.items()},
            "DENOISED_REDIS_URL": self.redis.url,
            "DENOISED_DATA_DIR": str(folder / "data"),
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
        }
        self.members = {
            name: Member(name, (name.partition("-")[0],), self.env)
            for name in (*WORKERS, *KEEPERS, *APIS)
        }
        for name, port in ports.items():
            self.members[name].env = self.env | {
                "DENOISED_PORT": str(port),
                "DENOISED_REQUIRE_KEYS": "always" if name == KEYED_API else "never",
            }
        self._keeping: asyncio.Task[None] | None = None
        self._wanted = set(self.members)

    async def __aenter__(self) -> Fleet:
        try:
            for member in self.members.values():
                self._start(member)
            self._keeping = asyncio.create_task(self._keep_up())
            for member in self.members.values():
                await self.up(member.name)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        for member in self.members.values():
            if member.process is not None:
                member.process.kill()
                member.process.join()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.redis.pid, signal.SIGCONT)
        self.redis.stop()

    async def up(self, name: str) -> Member:
        """Waits until the process is there."""
        async with asyncio.timeout(UP_SECONDS):
            while not self.members[name].is_up:
                await asyncio.sleep(POLL_SECONDS)
        return self.members[name]

    async def send(self, name: str, signum: signal.Signals) -> None:
        """Waits until the process is there and sends it a signal.

        A process that ends in this very moment is replaced, and the next one gets the signal.
        """
        while True:
            member = await self.up(name)
            assert member.process is not None
            assert member.process.pid is not None
            # Not collected yet, so the id cannot be somebody else's.
            if member.process.is_alive():
                self._kill(member, member.process.pid, signum)
                return
            await asyncio.sleep(POLL_SECONDS)

    async def freeze(self, name: str, seconds: float) -> None:
        """Stops a process as if its machine slept."""
        await self.send(name, signal.SIGSTOP)
        process = self.members[name].process
        await asyncio.sleep(seconds)
        if self.members[name].process is process and process is not None:
            assert process.pid is not None
            if process.is_alive():
                os.kill(process.pid, signal.SIGCONT)

    async def stop(self, *names: str) -> None:
        """Ends processes for good, in good order; one that does not end is killed."""
        self._wanted -= set(names)
        for name in names:
            process = self.members[name].process
            if process is not None and process.pid is not None and process.is_alive():
                self._kill(self.members[name], process.pid, signal.SIGTERM)
        deadline = time.monotonic() + KILL_SECONDS
        while any(self.members[name].process is not None for name in names):
            await asyncio.sleep(POLL_SECONDS)
            if time.monotonic() > deadline:
                for name in names:
                    if (process := self.members[name].process) is not None:
                        process.kill()

    def kill_redis(self) -> None:
        """Ends Redis without a chance to write anything."""
        os.kill(self.redis.pid, signal.SIGKILL)
        self.redis.stop()

    def start_redis(self) -> None:
        """Starts it again on its files, at the same address."""
        self.redis = EmbeddedRedis.start(self.folder / "redis")

    def _kill(self, member: Member, pid: int, signum: signal.Signals) -> None:
        """Sends a signal; of one that is to end the process it is noted that it was."""
        if signum in (signal.SIGKILL, signal.SIGTERM):
            member.causes.add(signum)
        if signum is signal.SIGTERM:
            member.told_at = member.told_at or time.monotonic()
            member.knew_how = member.knew_how and stops_file(self.control, pid).exists()
        os.kill(pid, signum)

    def _note_end(self, member: Member, status: int) -> None:
        log, said, told_at = self._log(member), "", member.told_at
        if log.exists():
            said = log.read_bytes()[member.log_start :].decode(errors="replace")
        seconds = 0.0 if told_at is None else time.monotonic() - told_at
        causes = frozenset(member.causes)
        self.ends.append(End(member.name, status, causes, member.knew_how, seconds, said))
        if member.marker is not None:
            member.marker.unlink(missing_ok=True)
            stops_file(self.control, int(member.marker.name)).unlink(missing_ok=True)

    def _log(self, member: Member) -> Path:
        return self.log_dir / f"{member.name}.log"

    def _start(self, member: Member) -> None:
        log = self._log(member)
        member.log_start = log.stat().st_size if log.exists() else 0
        process = PROCESSES.Process(
            target=launch,
            args=(member.arguments, member.env, self.control, log, self._sabotage),
            name=member.name,
        )
        process.start()
        member.process, member.causes = process, set()
        member.told_at, member.knew_how = None, True
        member.marker = self.control / str(process.pid)
        self.starts[member.name] += 1

    async def _keep_up(self) -> None:
        while True:
            for member in self.members.values():
                process = member.process
                if process is not None and process.exitcode is not None:
                    self._note_end(member, process.exitcode)
                    process.close()
                    member.process = None
                if member.process is None and member.name in self._wanted:
                    self._start(member)
            await asyncio.sleep(POLL_SECONDS)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
