"""How long loading a model holds up the heartbeat that keeps the leases, on a machine that is busy.

A Wan-VACE 1.3B file of full size with random blocks, Q4_K_M, is expanded in the main thread, as a
worker does when it switches models, while a worker's heartbeat thread runs at its usual pace and
five processes for each core keep the processors busy. Held up it is by the longest time between two
beats, less the pause that it makes by itself. Goal: no longer between two beats than a lease.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.gguf_loading import load_ours
from bench.goals import at_most
from bench.run import report
from bench.synthetic_gguf import VACE_1_3B, write_random_model
from config.settings import Settings
from jobs.types import ClaimedJob, Verdict
from jobs.worker_registry import WorkerInfo
from models.wan.transformer_config import WanVaceConfig
from models.weights.gguf.file_type import FileType
from workers.heartbeat import Heartbeat, Pulse

PROCESSES_PER_CORE = 5


class _Beats:
    """Notes the beats instead of telling Redis."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def beat(self, jobs: Sequence[ClaimedJob]) -> list[Verdict]:
        self.times.append(time.monotonic())
        return []

    def announce(self, info: WorkerInfo) -> None:
        pass


def run(
    config: WanVaceConfig = VACE_1_3B,
    processes: int = PROCESSES_PER_CORE * (os.cpu_count() or 1),
) -> dict[str, Any]:
    """Figures of one load, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_random_model(path, config, FileType.Q4_K_M)
        with _busy(processes):
            figures = measure(lambda: load_ours("bf16", path), Settings())
        return {"file_gb": path.stat().st_size / 1e9, "busy_processes": processes, **figures}


def measure(load: Callable[[], object], settings: Settings) -> dict[str, Any]:
    """What `load` in this thread does to a heartbeat in another."""
    beats = _Beats()
    info = WorkerInfo(name="bench", pid=os.getpid(), host="", device="cpu", dtype="")
    heartbeat = Heartbeat(
        beats,
        settings,
        Pulse(),
        held=lambda: (),
        post=lambda job, verdict: None,
        describe=lambda: info,
        note_answer=lambda: None,
        on_hang=lambda jobs: None,
    )
    heartbeat.start()
    started = time.monotonic()
    load()
    ended = time.monotonic()
    heartbeat.stop()
    moments = [started, *(beat for beat in beats.times if started < beat < ended), ended]
    longest = max(later - earlier for earlier, later in pairwise(moments))
    return {
        "load_seconds": ended - started,
        "longest_between_beats_seconds": longest,
        "held_up_seconds": max(0.0, longest - settings.heartbeat_seconds),
        "goals": [at_most("seconds between two beats", longest, settings.lease_seconds)],
    }


@contextmanager
def _busy(processes: int) -> Iterator[None]:
    started = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def main() -> int:
    """Print the figures."""
    return report(run())


if __name__ == "__main__":
    sys.exit(main())
