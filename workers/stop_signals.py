"""SIGTERM and SIGINT as a worker sees them: counted when they come, obeyed when it suits."""

from __future__ import annotations

import signal
import time
from types import FrameType


class StopSignals:
    """Counts SIGTERM and SIGINT; what that means is decided at the next step boundary.

    `first_at` is when the first came, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first_at = 0.0
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._note)

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        if self.count == 0:
            self.first_at = time.monotonic()
        self.count += 1
