"""Signals turned into a count and a wake-up, so that one loop alone decides what they mean."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from collections.abc import Callable


class SignalInbox:
    """Counts requests to stop and wakes its loop for them and for children that have ended.

    A context manager that takes over SIGTERM, SIGINT, SIGHUP and SIGCHLD of the process for good.
    """

    def __init__(self) -> None:
        self.stops = 0
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def __enter__(self) -> SignalInbox:
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        handlers: dict[signal.Signals, Callable[[int, object], None]] = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGHUP: self._on_stop,
            signal.SIGCHLD: lambda _signum, _frame: None,
        }
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        return self

    def __exit__(self, *_: object) -> None:
        # The process is about to end: late signals must not cut the last steps short.
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    def _on_stop(self, _signum: int, _frame: object) -> None:
        self.stops += 1

    def wait(self, seconds: float | None) -> None:
        """Return after `seconds` (None: any time) or as soon as a signal arrives."""
        select.select([self._reader], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(1024):
                pass
