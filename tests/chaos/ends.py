"""How the processes of a run have ended, and which of these ends nothing explains.

A kill explains a kill and a stop a drain. What jobs do to their workers is counted: a planned hang
or crash ends one worker with each of its attempts and no more.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.plan import APIS, WORKERS

EXIT_BROKEN = 70
"""`workers.process.EXIT_BROKEN`: of a worker that hangs, and of one with a fault."""

HANGS = "no progress, giving up"
"""What a worker logs before it ends because it hangs."""

FAILS = "worker failed"
"""What a worker logs before it ends because of an error that nothing has caught."""


@dataclass(frozen=True)
class End:
    """The end of a process: its exit status, negative for a signal, and what is known of its life.

    `causes` are the signals that it was sent to end it. `knew_how`: it had set itself up to be
    stopped before any SIGTERM came. `seconds` passed from the first SIGTERM to the end. `said` is
    what it has logged.
    """

    name: str
    status: int
    causes: frozenset[signal.Signals] = frozenset()
    knew_how: bool = True
    seconds: float = 0.0
    said: str = ""

    @property
    def hung(self) -> bool:
        """It is a worker that ended because it hung."""
        return self.name in WORKERS and self.status == EXIT_BROKEN and HANGS in self.said

    @property
    def crashed(self) -> bool:
        """It is a worker that was killed, and not by us."""
        ours = signal.SIGKILL in self.causes
        return self.name in WORKERS and self.status == -signal.SIGKILL and not ours


def end_faults(
    ends: Sequence[End], *, hangs: int, crashes: int, stop_seconds: float
) -> list[tuple[str, str]]:
    """What is wrong with how processes ended, as (process, sentence).

    So many ends can jobs that hang and that crash have caused at most. Who is told to stop has
    `stop_seconds`, unless it hangs.
    """
    faults = []
    for end in ends:
        if not (_is_explained(end) or end.hung or end.crashed):
            causes = ", ".join(sorted(cause.name for cause in end.causes)) or "no signal"
            faults.append((end.name, f"it ended with status {end.status} after {causes}"))
        if FAILS in end.said:
            faults.append((end.name, f"its log says {FAILS!r}"))
        if end.seconds > stop_seconds and not end.hung:
            faults.append((end.name, f"it took {end.seconds:.1f} s to stop"))
    for what, most, number in (
        ("hung", hangs, sum(end.hung for end in ends)),
        ("crashed", crashes, sum(end.crashed for end in ends)),
    ):
        if number > most:
            faults.append(("the workers", f"{number} {what}, the jobs account for {most}"))
    return faults


def _is_explained(end: End) -> bool:
    if signal.SIGTERM in end.causes:
        if end.status == 0:
            return True
        # uvicorn ends by the signal, once all is answered; others, only before they can know it.
        if end.status == -signal.SIGTERM and (end.name in APIS or not end.knew_how):
            return True
    return end.status == -signal.SIGKILL and signal.SIGKILL in end.causes
