"""Ties the life of a process to the one that started it, so that a killed parent leaves no orphans.

Linux delivers a signal itself when the parent dies; elsewhere a thread watches the parent's id.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # linux/prctl.h
WATCH_SECONDS = 0.5


def die_with(parent: int, signum: signal.Signals) -> None:
    """Have `signum` sent to this process when process `parent`, which started it, is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signum))
    else:
        threading.Thread(target=_watch, args=(parent, signum), daemon=True).start()
    # It may have died before the line above took hold.
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def _watch(parent: int, signum: signal.Signals) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signum)
