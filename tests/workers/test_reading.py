"""Sources that take long to read: who goes on meanwhile, and what becomes of their jobs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from engine_harness import (
    CPU,
    PATIENCE_SECONDS,
    Bench,
    claimed,
    claimed_clip,
    clip_bench,
    turn_until,
)
from fake_pipeline import FakeClipPipeline
from numpy.typing import NDArray

from config.settings import Settings
from jobs.types import ClaimedJob, Priority, Stage, Status, Usage, Verdict
from workers import inputs
from workers.background import BackgroundThread
from workers.process import Worker
from workers.reading import ReadingStuck


class SlowSources:
    """Pictures that cannot be read before `go` is set; `asked` gets the job of each at once."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: Queue[str] = Queue()

    def decode(self, path: Path, **_: int) -> NDArray[np.uint8]:
        self.asked.put(path.parts[-3])
        assert self.go.wait(PATIENCE_SECONDS)
        return np.zeros((32, 32, 3), np.uint8)

    def next_asked(self) -> str:
        return self.asked.get(timeout=PATIENCE_SECONDS)


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowSources]:
    slow = SlowSources()
    monkeypatch.setattr(inputs, "decode_image", slow.decode)
    yield slow
    slow.go.set()


def with_source(priority: Priority = Priority.STANDARD, **fields: Any) -> ClaimedJob:
    return replace(claimed_clip(first_frame="a", **fields), priority=priority)


def reading_bench(*, readers: int = 1, **options: Any) -> Bench:
    threads = [BackgroundThread(f"reading-{number}") for number in range(readers)]
    return clip_bench(readers=threads, **options)


def test_others_step_and_newcomers_join_while_a_source_is_read_and_its_lease_is_kept(
    sources: SlowSources,
) -> None:
    bench = reading_bench(readers=2)
    slow, early, late = with_source(), *(claimed(num_inference_steps=40) for _ in range(2))
    bench.engine.admit(early)
    bench.engine.admit(slow)
    assert sources.next_asked() == slow.id
    for _ in range(10):
        bench.engine.turn()
    assert bench.engine.open_ranks() == len(Priority)
    bench.engine.admit(late)
    turn_until(bench, lambda: bench.engine.held() == (slow,))
    assert bench.sink.status(early) is bench.sink.status(late) is Status.SUCCEEDED
    # With nothing to compute, turns end all the same: the watchdog sees the worker alive.
    for _ in range(3):
        bench.engine.turn()
    assert bench.sink.stages(slow) == [Stage.ENCODING]
    sources.go.set()
    turn_until(bench, lambda: bench.engine.is_idle)
    assert bench.sink.status(slow) is Status.SUCCEEDED


@pytest.mark.parametrize(
    ("verdict", "status"), [(Verdict.CANCEL, Status.CANCELLED), (Verdict.LEASE_LOST, None)]
)
def test_a_job_that_goes_while_its_source_is_read_goes_at_once_and_its_frames_with_it(
    sources: SlowSources, verdict: Verdict, status: Status | None
) -> None:
    bench, job, other = reading_bench(), with_source(), with_source()
    bench.engine.admit(job)
    assert sources.next_asked() == job.id
    bench.engine.post(job, verdict)
    bench.engine.turn()
    assert bench.engine.is_idle
    assert bench.sink.status(job) is status
    bench.engine.admit(other)
    sources.go.set()
    turn_until(bench, lambda: bench.engine.is_idle)
    assert bench.sink.status(job) is status
    assert bench.sink.status(other) is Status.SUCCEEDED
    assert isinstance(bench.pipeline, FakeClipPipeline)
    assert [request.seed for request in bench.pipeline.requests] == [other.input["seed"]]


def test_a_reader_that_is_free_takes_the_most_urgent_and_nothing_is_claimed_to_wait_for_it(
    sources: SlowSources,
) -> None:
    bench = reading_bench()
    first, patient = with_source(), with_source(Priority.BATCH)
    urgent = with_source(Priority.INTERACTIVE)
    bench.engine.admit(first)
    assert bench.engine.open_ranks() == [*Priority].index(Priority.STANDARD)
    bench.engine.admit(patient)
    bench.engine.admit(urgent)
    assert bench.engine.open_ranks() == 0
    bench.engine.turn()
    sources.go.set()
    turn_until(bench, lambda: bench.engine.is_idle)
    assert [sources.next_asked() for _ in range(3)] == [first.id, urgent.id, patient.id]


class Queues:
    """What of a lease client a draining worker needs."""

    def __init__(self) -> None:
        self.requeued: list[tuple[ClaimedJob, str, bool, Usage]] = []

    def requeue(
        self, job: ClaimedJob, cause: str, refund_attempt: bool, usage: Usage, detail: str = ""
    ) -> bool:
        self.requeued.append((job, cause, refund_attempt, usage))
        return True


def test_a_drain_that_ends_while_a_source_is_read_hands_the_job_back_with_its_attempt(
    sources: SlowSources, tmp_path: Path, keep_signal_handlers: None
) -> None:
    bench, job, queues = reading_bench(), with_source(), Queues()
    settings = Settings(data_dir=tmp_path, drain_seconds=0.1)
    worker = Worker(settings, "unix:///nowhere/redis.sock", CPU)
    worker._engine, worker._lease = bench.engine, queues  # type: ignore[assignment]
    bench.engine.admit(job)
    assert sources.next_asked() == job.id
    worker._signals.count, worker._signals.first_at = 1, time.monotonic()
    assert worker._serve(bench.engine) == 0
    assert queues.requeued == [(job, "drained", True, Usage())]
    assert bench.engine.is_idle


def test_a_source_that_never_comes_ends_the_engine_even_after_its_job_has_gone(
    sources: SlowSources,
) -> None:
    bench, job = reading_bench(reading_seconds=60.0), with_source()
    bench.engine.admit(job)
    bench.clock.wait(59.0)
    bench.engine.turn()
    bench.engine.post(job, Verdict.CANCEL)
    bench.engine.turn()
    assert bench.engine.is_idle
    bench.clock.wait(2.0)
    with pytest.raises(ReadingStuck, match="60 s"):
        bench.engine.turn()


def test_the_time_for_sources_is_estimated_but_not_paid_for(sources: SlowSources) -> None:
    bench, job = reading_bench(), with_source(num_inference_steps=2)
    bench.engine.admit(job)
    assert sources.next_asked() == job.id
    bench.clock.wait(5.0)
    sources.go.set()
    turn_until(bench, lambda: bench.engine.is_idle)
    outcome = bench.sink.outcomes[job.id]
    assert outcome.usage.gpu_seconds == pytest.approx(0.2)
    assert outcome.costs is not None
    assert outcome.costs.encoding == pytest.approx(5.0)
