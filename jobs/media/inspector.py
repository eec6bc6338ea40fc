"""Files checked by decoding them, away from the process that serves requests.

A few helper processes are kept, since starting one costs more than most files do. A helper that a
file brings down, or that takes too long over it, is replaced, and the file refused.

Most files take milliseconds. Each is first given little time; one that takes more begins anew among
others of its kind, so that they hold up each other and not the rest.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

from jobs.media.info import ChecksBusy, MediaError, MediaInfo, MediaLimits

HELPERS = 2
"""Files of each kind, quick and slow, decoded at the same time; more wait."""

QUICK_SECONDS = 1.0
"""Processor time after which a file is a slow one."""

MAX_WAITING = 32
"""Files decoded and waiting, together."""

CLOCK_SHARE = 0.1
"""A machine that gives a file less than this share of the time that passes is too busy for it."""

RETRY_SECONDS = 5
"""When to come again after more."""

PATIENCE = 2.0
"""Seconds that a helper which said nothing more is given to end by itself."""

_ROOT = str(Path(__file__).resolve().parents[2])
# -P: a folder named `jobs` where the server was started must not come first.
_COMMAND = (
    sys.executable,
    "-P",
    "-c",
    f"import sys; sys.path.append({_ROOT!r}); from jobs.media.helper import main; main()",
)


class _TookLonger(Exception):
    """The file was not decoded in the time that it was given."""


class MediaInspector:
    """Decodes files for an asyncio server. `seconds` of processor time are what one may take."""

    def __init__(self, limits: MediaLimits, *, seconds: float) -> None:
        self._limits = limits
        self._seconds = seconds
        # Helpers of their own: slow files must not take those that quick ones wait for.
        self._quick = _Lane("media")
        self._slow = _Lane("slow-media")
        self._waiting = 0

    async def probe(self, path: Path) -> MediaInfo:
        """What `path` holds.

        Raises `MediaError`, one line that goes after the field's name, and `ChecksBusy` when too
        many files wait already or the machine has no time for this one.
        """
        if self._waiting >= MAX_WAITING:
            raise ChecksBusy(RETRY_SECONDS)
        self._waiting += 1
        try:
            return await self._probe_in_turn(path)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Ends the helpers; files being decoded are given up."""
        self._quick.close()
        self._slow.close()

    async def _probe_in_turn(self, path: Path) -> MediaInfo:
        lane = self._quick
        if self._seconds > QUICK_SECONDS:
            with suppress(_TookLonger):
                return await lane.probe(self._request(path, QUICK_SECONDS))
            lane = self._slow
        try:
            return await lane.probe(self._request(path, self._seconds))
        except _TookLonger:
            raise MediaError(
                f"takes more than {self._seconds:g} seconds of processor time to decode"
            ) from None

    def _request(self, path: Path, seconds: float) -> dict[str, Any]:
        return {
            "path": str(path),
            "limits": self._limits.model_dump(),
            "seconds": seconds,
            "patience": self._seconds / CLOCK_SHARE,
        }


class _Lane:
    """Helpers for one kind of file, and the files that wait for them, first come first served."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(HELPERS, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._idle: list[_Helper] = []
        self.helpers: set[_Helper] = set()
        self._closed = False

    async def probe(self, request: dict[str, Any]) -> MediaInfo:
        """What the helper answers. Raises `MediaError`, `ChecksBusy` and `_TookLonger`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._ask, request)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            helpers = list(self.helpers)
        for helper in helpers:
            helper.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for helper in helpers:
            helper.status()

    def _ask(self, request: dict[str, Any]) -> MediaInfo:
        helper = self._take()
        reply = helper.ask(request)
        if reply is None:
            status = helper.status()
            with self._lock:
                self.helpers.discard(helper)
            if status == -signal.SIGXCPU:
                raise _TookLonger
            if status == -signal.SIGALRM:
                # It did not get its processor time: that says nothing about the file.
                raise ChecksBusy(RETRY_SECONDS)
            raise MediaError("cannot be decoded: it makes the decoder fail")
        with self._lock:
            self._idle.append(helper)
        if "slow" in reply:
            raise _TookLonger
        if "error" in reply:
            raise MediaError(reply["error"])
        return MediaInfo.model_validate(reply["info"])

    def _take(self) -> _Helper:
        """A helper that lives. Raises `RuntimeError` when none can be started."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the media inspector is closed")
            while self._idle:
                helper = self._idle.pop()
                if helper.is_alive:
                    return helper
                self.helpers.discard(helper)
                helper.status()
            helper = _Helper()
            self.helpers.add(helper)
        helper.wait_until_ready()
        return helper


class _Helper:
    """One process of `jobs.media.helper`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        if not self._stdout.readline():
            raise RuntimeError(f"the media helper did not start (status {self.status()})")

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer, or None when the process has gone."""
        stdin = cast("IO[bytes]", self._process.stdin)
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            line = self._stdout.readline()
        except (BrokenPipeError, ValueError):
            return None
        return cast("dict[str, Any]", json.loads(line)) if line.endswith(b"\n") else None

    def kill(self) -> None:
        """Has it end now; `status` must be asked for all the same."""
        self._process.kill()

    def status(self) -> int:
        """How it ended, negative by which signal; one that has not is made to."""
        try:
            status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        for pipe in (self._process.stdin, self._stdout):
            # What was left to write to it has nobody to read it.
            with suppress(BrokenPipeError):
                cast("IO[bytes]", pipe).close()
        return status

    @property
    def _stdout(self) -> IO[bytes]:
        return cast("IO[bytes]", self._process.stdout)
