"""SIGTERM and SIGINT as a worker sees them: counted when they come, obeyed when it suits.

Jobs are left between two pieces of their work. A load is left wherever it stands: it takes minutes,
and nobody needs the model of a worker that is going.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """Told to stop in the middle of work that is then of no use. Whoever handles failures of that
    work must not take it for one, so it is no `Exception`.
    """


class StopSignals:
    """Counts SIGTERM and SIGINT; what that means is decided between two pieces of work.

    `first_at` is when the first came, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first_at = 0.0
        self._is_obeyed_at_once = False
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._note)

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        if self.count == 0:
            self.first_at = time.monotonic()
        self.count += 1
        if self._is_obeyed_at_once:
            self._is_obeyed_at_once = False
            raise Stopped

    @contextmanager
    def obeyed_at_once(self) -> Iterator[None]:
        """Around work of the main thread that may be left anywhere: raises Stopped when told to
        stop, by then or in the middle of it.
        """
        self._is_obeyed_at_once = True
        try:
            self._obey()
            yield
            # Python drops what a handler raises inside a finalizer.
            self._obey()
        finally:
            self._is_obeyed_at_once = False

    def _obey(self) -> None:
        if self.count:
            raise Stopped
