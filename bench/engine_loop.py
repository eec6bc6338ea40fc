"""The step engine in this process under a given load, without Redis: what several benchmarks share.

`EngineLoop` does what a worker's main thread does, claim one job for a free seat and take a turn,
over jobs that arrive at given times, and notes when each was begun, took its first step and ended.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from config.model_spec import ModelSpec
from jobs.blobs import FileBlobStore
from jobs.schema import resolve_input
from jobs.types import (
    Checkpoint,
    ClaimedJob,
    Outcome,
    Priority,
    Progress,
    Status,
    Usage,
    Verdict,
)
from models.pipeline import Generation, KeepGoing, Pipeline, Request, to_the_end
from workers.background import BackgroundThread
from workers.batch_limits import BatchLimits
from workers.checkpoints import Checkpoints
from workers.device import Device
from workers.engine import Engine
from workers.inputs import InputReader
from workers.member import RANKS
from workers.reading import ReadingQueue
from workers.recipe import Recipes
from workers.results import ResultWriter
from workers.storing import StoringQueue

_numbers = itertools.count()


def new_job(spec: ModelSpec, priority: Priority, seed: int, **fields: Any) -> ClaimedJob:
    """A job as a worker claims it, `fields` over the model's defaults."""
    number = next(_numbers)
    prompt = "a red circle on a blue background"
    return ClaimedJob(
        id=f"job{number}",
        model=spec.id,
        input=resolve_input(spec, {"prompt": prompt, "seed": seed, **fields}),
        priority=priority,
        deterministic=False,
        attempt=1,
        execution_id=f"execution{number}",
        queue="",
        created_at=datetime.now(UTC),
        queued_seconds=0.0,
    )


@dataclass
class Times:
    """When a job came, was taken up, took its first step and ended, in seconds of one clock."""

    arrived: float
    begun: float
    first_step: float = 0.0
    ended: float = 0.0


class _Watched:
    """A pipeline that says whose first step it is about to take, by the seed."""

    def __init__(self, pipeline: Pipeline, note: Callable[[int], None]) -> None:
        self._pipeline = pipeline
        self._note = note
        self._seeds: WeakKeyDictionary[Generation, int] = WeakKeyDictionary()
        self.step_seconds: list[float] = []

    def prepare(self, request: Request, keep_going: KeepGoing = to_the_end) -> Generation:
        generation = self._pipeline.prepare(request, keep_going)
        self._seeds[generation] = request.seed
        return generation

    def step(self, batch: Sequence[Generation], keep_going: KeepGoing = to_the_end) -> None:
        for generation in batch:
            if generation.step_index == 0:
                self._note(self._seeds[generation])
        started = time.perf_counter()
        self._pipeline.step(batch, keep_going)
        self.step_seconds.append(time.perf_counter() - started)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


class EngineLoop:
    """One engine over `pipelines`; `times` and `files` are of the last load, by job id."""

    def __init__(self, pipelines: Mapping[str, Pipeline], *, max_batch_images: int) -> None:
        self.times: dict[str, Times] = {}
        self.files: dict[str, list[bytes]] = {}
        self._data: dict[str, bytes] = {}
        self._by_seed: dict[int, str] = {}
        device = Device("cpu", "float32")
        recipes = {model: Recipes(model, "", device, "") for model in pipelines}
        self._watched = {
            model: _Watched(p, self._note_first_step) for model, p in pipelines.items()
        }
        self._engine = Engine(
            self._watched,
            self,
            ReadingQueue(
                InputReader(FileBlobStore(Path("nowhere")), max_frames=1),
                [BackgroundThread("reading")],
                stuck_seconds=300.0,
                clock=time.monotonic,
            ),
            StoringQueue(
                ResultWriter(self, recipes),
                BackgroundThread("storing"),
                stuck_seconds=300.0,
                clock=time.monotonic,
            ),
            Checkpoints(
                FileBlobStore(Path("nowhere")),
                self,
                recipes,
                BackgroundThread("checkpoints"),
                every_seconds=math.inf,
            ),
            device,
            BatchLimits(max_batch_images),
            capacity=2 * max_batch_images,
            max_attempts=1,
            preview_seconds=1e9,
        )

    def run(
        self,
        arrivals: Sequence[tuple[float, ClaimedJob]],
        *,
        followers: Iterable[tuple[float, ClaimedJob]] = (),
    ) -> None:
        """Work off jobs that arrive so many seconds after the start, in that order.

        One of the `followers` arrives so many seconds after the end of each job. No two jobs may
        have the same seed.
        """
        self.times, self.files = {}, {}
        self._data.clear()
        for watched in self._watched.values():
            watched.step_seconds.clear()
        started = time.perf_counter()
        waiting = [(started + after, job) for after, job in arrivals]
        ended, followers = 0, iter(followers)
        while waiting or not self._engine.is_idle:
            if ended < len(self.files):
                ended = len(self.files)
                waiting += [(time.perf_counter() + after, j) for after, j in islice(followers, 1)]
            now = time.perf_counter()
            ranks = self._engine.open_ranks()
            due = [
                entry for entry in waiting if entry[0] <= now and RANKS[entry[1].priority] < ranks
            ]
            if due:
                entry = min(due, key=lambda e: (RANKS[e[1].priority], e[0]))
                waiting.remove(entry)
                self.times[entry[1].id] = Times(entry[0], time.perf_counter())
                self._by_seed[entry[1].input["seed"]] = entry[1].id
                self._engine.admit(entry[1])
            elif self._engine.is_idle and waiting:
                time.sleep(max(0.0, waiting[0][0] - now))
            self._engine.turn()

    def step_seconds(self, model: str) -> list[float]:
        """What every step of a model took in the last load."""
        return self._watched[model].step_seconds

    def _note_first_step(self, seed: int) -> None:
        self.times[self._by_seed[seed]].first_step = time.perf_counter()

    def report(self, updates: Sequence[Progress]) -> list[Verdict]:
        """Part of the engine's sink."""
        return [Verdict.CONTINUE] * len(updates)

    def finish(self, job: ClaimedJob, outcome: Outcome) -> bool:
        """Part of the engine's sink."""
        if outcome.status is not Status.SUCCEEDED:
            raise RuntimeError(f"{job.id} ended as {outcome.status}: {outcome.failure}")
        self.times[job.id].ended = time.perf_counter()
        self.files[job.id] = [self._data[output.key] for output in outcome.outputs]
        return True

    def restarted(self, job: ClaimedJob, cause: str) -> bool:
        """Part of the engine's sink; nothing here goes on from a checkpoint."""
        raise RuntimeError(f"{job.id} restarted: {cause}")

    def hand_back(self, job: ClaimedJob, cause: str, usage: Usage) -> bool:
        """Part of the engine's sink; nothing here goes on from a checkpoint."""
        raise RuntimeError(f"{job.id} handed back: {cause}")

    def record_checkpoint(self, job: ClaimedJob, checkpoint: Checkpoint, usage: Usage) -> bool:
        """Part of a lease client; no checkpoint is ever due here."""
        raise RuntimeError(f"{job.id} got a checkpoint")

    def put(self, key: str, data: bytes) -> None:
        """Part of a blob store."""
        self._data[key] = data


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The middle and the 95th percentile."""
    ordered = sorted(values)
    return {
        "p50": ordered[len(ordered) // 2],
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
    }
