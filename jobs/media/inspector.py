"""Files checked by decoding them, away from the process that serves requests.

A few helper processes are kept, since starting one costs more than most files do. A helper that a
file brings down, or that takes too long over it, is replaced, and the file refused.
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

from jobs.media.info import MediaError, MediaInfo, MediaLimits

HELPERS = 2
"""Files decoded at the same time; more wait."""

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


class MediaInspector:
    """Decodes files for an asyncio server. `seconds` is how long one file may take."""

    def __init__(self, limits: MediaLimits, *, seconds: float) -> None:
        self._limits = limits
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(HELPERS, thread_name_prefix="media")
        self._lock = threading.Lock()
        self._idle: list[_Helper] = []
        self._all: set[_Helper] = set()
        self._closed = False

    async def probe(self, path: Path) -> MediaInfo:
        """What `path` holds. Raises `MediaError`, one line that goes after the field's name."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._probe, path)

    def close(self) -> None:
        """Ends the helpers; files being decoded are given up."""
        with self._lock:
            self._closed = True
            helpers = list(self._all)
        for helper in helpers:
            helper.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for helper in helpers:
            helper.status()

    def _probe(self, path: Path) -> MediaInfo:
        helper = self._take()
        reply = helper.ask(
            {
                "path": str(path),
                "limits": self._limits.model_dump(),
                "seconds": self._seconds,
            }
        )
        if reply is None:
            status = helper.status()
            with self._lock:
                self._all.discard(helper)
            if status == -signal.SIGALRM:
                raise MediaError(f"takes more than {self._seconds:g} seconds to decode")
            raise MediaError("cannot be decoded: it makes the decoder fail")
        with self._lock:
            self._idle.append(helper)
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
                self._all.discard(helper)
                helper.status()
            helper = _Helper()
            self._all.add(helper)
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
