"""A worker's switching without processes: queues that are lists, models that take bytes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from engine_harness import CPU, Bench, Clock
from fake_pipeline import FakePipeline, fake_spec

from config.model_spec import ModelSpec
from config.settings import Settings
from jobs.types import ClaimedJob, ModelLoad, Priority, Usage
from models.pipeline import Pipeline
from workers.heartbeat import Pulse
from workers.isolation import Isolation
from workers.load_notices import LoadNotices
from workers.load_speeds import LoadSpeeds
from workers.model_switching import LOOK_SECONDS, ModelSwitching
from workers.residency import Residents

PATIENCE = 30.0
LOAD_SECONDS = 4.0
STEP_SECONDS = 0.5


class Queues:
    """Waiting jobs by model, each with the time at which it came.

    Those in `held_up` nobody may claim, as where their key has its quota of running jobs used up;
    those in `taken_first` count as waiting, too, but another worker is always first.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.jobs: dict[str, list[tuple[float, ClaimedJob]]] = {}
        self.held_up: set[str] = set()
        self.taken_first: set[str] = set()
        self.claims: list[str] = []
        self.requeued: list[tuple[ClaimedJob, str]] = []
        self.told: list[tuple[ClaimedJob, ModelLoad]] = []
        self.loads: list[str] = []

    def put(self, *jobs: ClaimedJob) -> None:
        for job in jobs:
            self.jobs.setdefault(job.model, []).append((self.clock(), job))

    def oldest_waiting(
        self, models: Sequence[str], priorities: Collection[Priority]
    ) -> dict[str, float]:
        came = {
            m: [
                at
                for at, job in self.jobs.get(m, [])
                if job.priority in priorities and job.id not in self.held_up
            ]
            for m in models
        }
        return {m: self.clock() - min(times) for m, times in came.items() if times}

    def claim(
        self,
        models: Sequence[str],
        limit: int,
        priorities: Collection[Priority],
        *,
        retry_seconds: float = 0,
    ) -> list[ClaimedJob]:
        self.claims += models
        unavailable = self.held_up | self.taken_first
        taken: list[ClaimedJob] = []
        for model in models:
            for entry in list(self.jobs.get(model, [])):
                is_free = entry[1].priority in priorities and entry[1].id not in unavailable
                if is_free and len(taken) < limit:
                    self.jobs[model].remove(entry)
                    taken.append(entry[1])
        return taken

    def tell_loading(self, model: str, load: ModelLoad) -> int:
        waiting = self.jobs.get(model, [])
        self.told += [(job, load) for _, job in waiting]
        self.loads.append(model)
        return len(waiting)

    def tell_loaded(self, model: str) -> None:
        self.loads.remove(model)

    def requeue(self, job: ClaimedJob, cause: str, refund_attempt: bool, usage: Usage) -> bool:
        assert refund_attempt
        self.requeued.append((job, cause))
        return True


class Scene:
    """Models a, b and c of 100 bytes each in memory for `budget` bytes, and a worker's loop."""

    def __init__(self, tmp_path: Path, *, budget: int = 100, models: str = "abc") -> None:
        resident: dict[str, Pipeline] = {}
        self.bench = Bench(
            models=[*models],
            resident=resident,
            max_batch_images=1,
            seconds=lambda images: STEP_SECONDS,
        )
        self.clock, self.engine, self.sink = self.bench.clock, self.bench.engine, self.bench.sink
        self.queues = Queues(self.clock)
        self.notices = LoadNotices(self.queues)
        self.loaded: list[str] = []
        self.trouble: dict[str, Exception] = {}
        self.residents = Residents(
            CPU,
            tmp_path / "digests.json",
            LoadSpeeds(tmp_path / "load_speeds.json", "cpu"),
            budget_bytes=budget,
            load=self.load,
            weigh=lambda spec: 100,
            telling=self.notices.during,
            clock=self.clock,
        )
        # The engine sees exactly what is resident, as in a worker.
        self.residents.pipelines = resident
        settings = Settings(model_switch_seconds=PATIENCE)
        self.isolation = Isolation(self.queues, settings.max_attempts, clock=self.clock)
        self.switching = ModelSwitching(
            self.residents,
            self.queues,
            self.isolation,
            Pulse(),
            settings,
            clock=self.clock,
        )
        self.residents.load([fake_spec(model) for model in models])

    def load(self, spec: ModelSpec, *, device: object, dtype: object) -> FakePipeline:
        if spec.id in self.trouble:
            raise self.trouble[spec.id]
        self.clock.wait(LOAD_SECONDS)
        self.loaded.append(spec.id)
        return self.bench.pipelines[spec.id]

    def go_on(self, *, seconds: float) -> None:
        """The worker's loop: claim one job of what is resident, perhaps switch, turn."""
        end = self.clock() + seconds
        while self.clock() < end:
            ranks = min(self.isolation.open_ranks(self.engine), self.engine.open_ranks())
            classes = [*Priority][:ranks]
            for job in self.queues.claim(self.switching.claimable(), 1, classes):
                if self.isolation.let_in(job, self.engine):
                    self.switching.admit(job, self.engine)
            self.switching.consider(self.engine)
            if self.engine.is_idle:
                self.clock.wait(LOOK_SECONDS if self.residents.cold else 1.0)
            self.engine.turn()

    @property
    def resident(self) -> set[str]:
        return set(self.residents.pipelines)
