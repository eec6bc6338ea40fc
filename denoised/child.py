"""One supervised process: started, watched, started again with growing pauses, stopped.

The supervisor owns the clock and the signals; a `Child` only knows its command and its own past.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0
# A process that lived this long was not crash-looping: its next pause is the first one again.
HEALTHY_SECONDS = 60.0


def pause_before_restart(quick_deaths: int) -> float:
    """Seconds to wait before the next start, after `quick_deaths` short lives in a row (>= 1)."""
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(quick_deaths - 1, 16))


class Child:
    """A `denoised` subcommand run by this interpreter in a session of its own.

    Its own session keeps Ctrl-C at the terminal from reaching it, so that the supervisor decides
    the order in which processes stop.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        env: Mapping[str, str],
        *,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.starts = 0
        self.restart_at: float | None = None
        self._arguments = list(arguments)
        self._env = dict(env)
        self._pass_fds = tuple(pass_fds)
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._quick_deaths = 0

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    def start(self, now: float) -> None:
        """Run the command. `now` is on the supervisor's monotonic clock."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "denoised", *self._arguments, "--die-with", str(os.getpid())],
            env=self._env,
            pass_fds=self._pass_fds,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.starts += 1
        self.restart_at = None
        self._started_at = now

    def collect(self, now: float) -> tuple[int, int] | None:
        """(process id, exit status) if it has ended since the last call; plans the restart.

        The status is negative when a signal ended it.
        """
        if self._process is None:
            return None
        status = self._process.poll()
        if status is None:
            return None
        pid = self._process.pid
        self._process = None
        long_life = now - self._started_at >= HEALTHY_SECONDS
        self._quick_deaths = 1 if long_life else self._quick_deaths + 1
        self.restart_at = now + pause_before_restart(self._quick_deaths)
        return pid, status

    def send(self, signum: signal.Signals) -> None:
        """Signal it if it runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signum)
