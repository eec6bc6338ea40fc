"""Jobs interrupted at a step and taken up by another engine, over checkpoints in memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from engine_harness import Bench, MemoryBlobs

from jobs.types import ClaimedJob

T = TypeVar("T")

LONG = 400


class Later:
    """A background whose work waits until it is told to be done."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], object], Future[object]]] = []

    def submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self.waiting.append((work, future))  # type: ignore[arg-type]
        return future

    def work_off(self) -> None:
        while self.waiting:
            work, future = self.waiting.pop(0)
            future.set_result(work())


class FullDisk(MemoryBlobs):
    """Takes nothing while `is_full`."""

    is_full = True

    def put(self, key: str, data: bytes) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device", key)
        super().put(key, data)


def turn(bench: Bench, turns: int) -> None:
    for _ in range(turns):
        bench.engine.turn()


def interrupted(
    job: ClaimedJob, turns: int = 150, bench: Bench | None = None
) -> tuple[Bench, ClaimedJob]:
    """A bench that has lost `job` after so many steps, and the job as it is claimed again."""
    bench = bench or Bench(checkpoint_seconds=10.0)
    bench.engine.admit(job)
    turn(bench, turns)
    pointer = bench.recorder.pointers[job.id]
    return bench, replace(job, execution_id=f"{job.execution_id}b", checkpoint=pointer)


def resume(job: ClaimedJob, checkpoints: MemoryBlobs) -> Bench:
    bench = Bench(checkpoint_seconds=10.0, checkpoint_blobs=checkpoints)
    bench.run(job)
    return bench


def outputs(bench: Bench) -> list[bytes]:
    return [bench.blobs[key] for key in sorted(bench.blobs)]
