"""One server per data directory: the lock that holds it, and the note saying where it listens.

`denoised serve` takes the lock for its whole life and writes its address beside it; a second one
is refused, and `denoised run` finds the address of a server that is already there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from denoised.errors import CommandError

# Longer than `find` ever keeps its shared lock, shorter than a person notices.
LOCK_PATIENCE_SECONDS = 0.5


@dataclass(frozen=True)
class Instance:
    """A running server: its process id and the URL it answers on."""

    pid: int
    url: str


def _lock_path(data_dir: Path) -> Path:
    return data_dir / "server.lock"


@contextlib.contextmanager
def hold(data_dir: Path, url: str) -> Iterator[None]:
    """Keep `data_dir` for the server at `url` while the context lasts.

    The kernel drops the lock with the process, so a killed server leaves nothing to clean up.
    Raises CommandError when another server holds it or the directory cannot be made.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = open(_lock_path(data_dir), "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise CommandError(f"cannot use the data directory {data_dir}: {error.strerror}") from None
    with file:
        if not _lock(file):
            raise already_running(data_dir, find(data_dir))
        file.truncate(0)
        file.write(json.dumps(asdict(Instance(pid=os.getpid(), url=url))))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _lock(file: IO[str]) -> bool:
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def already_running(data_dir: Path, owner: Instance | None) -> CommandError:
    """The refusal to start a second server on `data_dir`."""
    who = f" (process {owner.pid}, {owner.url})" if owner else ""
    return CommandError(
        f"the data directory {data_dir} belongs to a server that is already running{who}; "
        "stop it or choose another with --data-dir or DENOISED_DATA_DIR"
    )


def find(data_dir: Path) -> Instance | None:
    """The server that holds `data_dir` now, or None."""
    try:
        file = open(_lock_path(data_dir), encoding="utf-8")  # noqa: SIM115
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(json.JSONDecodeError, TypeError):
                return Instance(**json.loads(file.read()))
        return None
