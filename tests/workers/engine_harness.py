"""An engine over the fake pipeline, a clock that only steps move, and a sink that remembers."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from fake_pipeline import FakeClipPipeline, FakePipeline, fake_clip_spec, fake_spec

from config.model_spec import ModelSpec
from jobs.blobs import FileBlobStore
from jobs.types import (
    Checkpoint,
    ClaimedJob,
    Outcome,
    Priority,
    Progress,
    Stage,
    Status,
    Usage,
    Verdict,
)
from models.pipeline import Pipeline
from workers.background import Background
from workers.batch_limits import BatchLimits
from workers.checkpoints import Checkpoints
from workers.device import Device
from workers.engine import Engine
from workers.inputs import InputReader
from workers.reading import ReadingQueue
from workers.results import ResultWriter
from workers.sink import Sink
from workers.storing import StoringQueue

T = TypeVar("T")

# Reached only when something is broken.
PATIENCE_SECONDS = 30.0

MAX_ATTEMPTS = 3

CPU = Device("cpu", "float32")
_numbers = itertools.count()


def claimed(
    prompt: str = "a word",
    *,
    priority: Priority = Priority.STANDARD,
    deterministic: bool = False,
    model: str = "fake",
    **fields: Any,
) -> ClaimedJob:
    number = next(_numbers)
    resolved = {
        "prompt": prompt,
        "negative_prompt": "",
        "width": 64,
        "height": 64,
        "num_inference_steps": 4,
        "guidance_scale": 4.5,
        "num_images": 1,
        "seed": number,
        "sampler": "dpm-solver++",
        "output_format": "png",
        "output_quality": 90,
    }
    return ClaimedJob(
        id=f"job{number}",
        model=model,
        input=resolved | fields,
        priority=priority,
        deterministic=deterministic,
        attempt=1,
        execution_id=f"execution{number}",
        queue=f"{model}:{priority}",
        created_at=datetime.now(UTC),
        queued_seconds=0.0,
    )


def claimed_clip(prompt: str = "a word", **fields: Any) -> ClaimedJob:
    """A text-to-video job of the model "clips", unless `fields` bring media."""
    job = claimed(
        prompt,
        model="clips",
        num_frames=9,
        fps=16.0,
        flow_shift=5.0,
        conditioning_scale=1.0,
        video=None,
        mask=None,
        outpaint={"left": 0.0, "right": 0.0, "top": 0.0, "bottom": 0.0},
        control_video=None,
        control="given",
        layout=None,
        first_frame=None,
        last_frame=None,
        first_clip=None,
        last_clip=None,
        reference_images=[],
        frame_policy="trim",
        output_format="mp4",
    )
    del job.input["num_images"]
    job.input.update(fields)
    return job


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


class MemorySink:
    """Remembers reports and outcomes; `verdicts` answers for a job once it is set."""

    def __init__(self) -> None:
        self.calls: list[list[Progress]] = []
        self.outcomes: dict[str, Outcome] = {}
        self.order: list[str] = []
        self.restarts: list[tuple[str, str]] = []
        self.handed_back: list[tuple[str, str]] = []
        self.verdicts: dict[str, Verdict] = {}

    def report(self, updates: Sequence[Progress]) -> list[Verdict]:
        self.calls.append(list(updates))
        return [self.verdicts.get(update.job.id, Verdict.CONTINUE) for update in updates]

    def restarted(self, job: ClaimedJob, cause: str) -> bool:
        self.restarts.append((job.id, cause))
        return True

    def hand_back(self, job: ClaimedJob, cause: str, usage: Usage) -> bool:
        self.handed_back.append((job.id, cause))
        return True

    def finish(self, job: ClaimedJob, outcome: Outcome) -> bool:
        assert job.id not in self.outcomes, "a job was settled twice"
        self.outcomes[job.id] = outcome
        self.order.append(job.id)
        return True

    def of(self, job: ClaimedJob) -> list[Progress]:
        return [update for call in self.calls for update in call if update.job.id == job.id]

    def status(self, job: ClaimedJob) -> Status | None:
        outcome = self.outcomes.get(job.id)
        return None if outcome is None else outcome.status

    def stages(self, job: ClaimedJob) -> list[Stage]:
        return [stage for stage, _ in itertools.groupby(u.stage for u in self.of(job))]


class MemoryBlobs(dict[str, bytes]):
    """Files in memory."""

    def put(self, key: str, data: bytes) -> None:
        assert key not in self
        self[key] = data

    def read(self, key: str) -> bytes:
        if key not in self:
            raise FileNotFoundError(key)
        return self[key]

    def delete(self, key: str) -> None:
        self.pop(key, None)

    def delete_prefix(self, prefix: str) -> None:
        for key in [key for key in self if key.startswith(f"{prefix}/")]:
            del self[key]


class HeldBlobs(MemoryBlobs):
    """A disk that takes files only while `open` is set; `waiting` tells that one is at the door."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.waiting = threading.Event()

    def put(self, key: str, data: bytes) -> None:
        self.waiting.set()
        assert self.open.wait(PATIENCE_SECONDS)
        super().put(key, data)


class MemoryRecorder:
    """Remembers where each job's pointer stands; `is_fenced_off` refuses to move any."""

    def __init__(self) -> None:
        self.pointers: dict[str, Checkpoint] = {}
        self.usages: list[Usage] = []
        self.is_fenced_off = False

    def record_checkpoint(self, job: ClaimedJob, checkpoint: Checkpoint, usage: Usage) -> bool:
        if self.is_fenced_off:
            return False
        self.pointers[job.id] = checkpoint
        self.usages.append(usage)
        return True


class AtOnce:
    """A background that does all work in the foreground."""

    def submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(work())
        return future


class PlainRecipes:
    """Recipes without anything of the machine."""

    def of(self, job: ClaimedJob, index: int) -> dict[str, Any]:
        return {"denoised": "test", "input": {**job.input, "seed": job.input["seed"] + index}}

    def identity(self, job: ClaimedJob) -> dict[str, str]:
        return {"model": job.model}


class Bench:
    """Engine, pipeline, sink, blobs and clock of one test.

    The engine serves all `models`, or those that are in `resident` at the time. What `over` makes
    of the sink and the clock stands between the engine and the sink.
    """

    def __init__(
        self,
        *,
        seconds: Callable[[int], float] = lambda images: 0.1,
        max_batch_images: int = 16,
        models: Sequence[str] = ("fake",),
        resident: dict[str, Pipeline] | None = None,
        preview_seconds: float = 1e9,
        blobs: MemoryBlobs | None = None,
        background: Background | None = None,
        storing_seconds: float = 300.0,
        inputs: Path = Path("nowhere"),
        readers: Sequence[Background] | None = None,
        reading_seconds: float = 300.0,
        spec_of: Callable[[str], ModelSpec] = fake_spec,
        checkpoint_seconds: float = 1e9,
        checkpoint_background: Background | None = None,
        checkpoint_blobs: MemoryBlobs | None = None,
        waiting_bytes: float = math.inf,
        limits: BatchLimits | None = None,
        over: Callable[[MemorySink, Clock], Sink] = lambda sink, clock: sink,
    ) -> None:
        self.clock = Clock()
        self.sink = MemorySink()
        self.blobs = MemoryBlobs() if blobs is None else blobs
        self.checkpoints = MemoryBlobs() if checkpoint_blobs is None else checkpoint_blobs
        self.recorder = MemoryRecorder()
        self.pipelines: Mapping[str, FakePipeline] = {
            model: (FakeClipPipeline if spec_of(model).task == "video" else FakePipeline)(
                spec_of(model), seconds=seconds, wait=self.clock.wait
            )
            for model in models
        }
        self.pipeline = self.pipelines[models[0]]
        recipes = {model: PlainRecipes() for model in models}
        self.engine = Engine(
            self.pipelines if resident is None else resident,
            over(self.sink, self.clock),
            ReadingQueue(
                InputReader(FileBlobStore(inputs), max_frames=1000),
                readers or [AtOnce()],
                stuck_seconds=reading_seconds,
                clock=self.clock,
            ),
            StoringQueue(
                ResultWriter(self.blobs, recipes),
                background or AtOnce(),
                stuck_seconds=storing_seconds,
                clock=self.clock,
            ),
            Checkpoints(
                self.checkpoints,
                self.recorder,
                recipes,
                checkpoint_background or AtOnce(),
                every_seconds=checkpoint_seconds,
            ),
            CPU,
            limits or BatchLimits(max_batch_images),
            capacity=2 * max_batch_images,
            max_attempts=MAX_ATTEMPTS,
            preview_seconds=preview_seconds,
            waiting_bytes=waiting_bytes,
            clock=self.clock,
        )

    def run(self, *jobs: ClaimedJob, turns: int = 10_000) -> None:
        """Admit `jobs` and turn until nothing is left."""
        for job in jobs:
            self.engine.admit(job)
        while not self.engine.is_idle:
            assert turns > 0, "the engine never came to rest"
            turns -= 1
            self.engine.turn()

    def warm(self, size: int) -> None:
        """Let the limit for 64 x 64 images settle at `size` or above, by a saturating load."""
        for _ in range(20):
            self.run(*(claimed(num_inference_steps=8) for _ in range(size)))
        self.pipeline.batches.clear()


def any_spec(model: str) -> ModelSpec:
    return fake_clip_spec(model) if model == "clips" else fake_spec(model)


def clip_bench(**options: object) -> Bench:
    """A bench of "clips", which makes clips, and "fake", which makes pictures."""
    return Bench(models=("clips", "fake"), spec_of=any_spec, **options)  # type: ignore[arg-type]


def turn_until(bench: Bench, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        bench.engine.turn()


def overhead_bound(images: int) -> float:
    """Seconds of a step on a device on which larger batches pay."""
    return 0.1 + 0.01 * images
