"""One thread for work that must not hold up the steps: encoding and storing results.

Work goes in from the main thread, which collects what has come of it between steps. First in, first
out. The thread is a daemon: a call that never returns, to a disk that hangs, say, does not keep the
process from ending.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Background(Protocol):
    """Where work goes; tests do it at once."""

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have `work` done; the future tells when, and holds its result or exception."""


class BackgroundThread:
    """A `Background` that starts with the first work."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Put `work` behind what is waiting; cancelling its future takes it out again."""
        future: Future[T] = Future()
        self._waiting.put((work, future))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        return future

    def _run(self) -> None:
        while True:
            work, future = self._waiting.get()
            if future.set_running_or_notify_cancel():
                _do(work, future)
            # Nothing of this job may stay in memory until the next one comes.
            del work, future


def _do(work: Callable[[], Any], future: Future[Any]) -> None:
    """What comes of `work` is the future's alone."""
    try:
        result = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
