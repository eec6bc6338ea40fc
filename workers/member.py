"""One job inside the engine, from claim to finish: its generation, its clock, what it has used.

The engine moves members through encoding, denoising, decoding and storing; a member knows how to
describe itself to the scheduler (`resident`) and to the job layer (`progress`, `usage`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from jobs.types import (
    ClaimedJob,
    ModelLoad,
    Priority,
    Progress,
    Stage,
    StageCosts,
    Usage,
)
from models.pipeline import Generation, Request
from workers.roster import Resident

RANKS = {priority: rank for rank, priority in enumerate(Priority)}
"""Scheduling rank of each class, 0 the most urgent."""

LEAST_SECONDS_BETWEEN_EVENTS = 0.05
"""A few-step model must not flood watchers: at most 20 progress events a second and job."""

_NEWEST = 0.3  # weight of the newest interval in the moving average


@dataclass(eq=False)
class Member:
    """A claimed job and everything the engine keeps for it. Times are seconds of its clock.

    `reading_seconds` were spent on its sources, while the device may have worked for others.
    Of the request only the counts stay, `num_images` and `num_pixels` of everything asked for: its
    clips would take memory for as long as the job runs.
    """

    job: ClaimedJob
    generation: Generation | None = None
    num_images: int = 1
    num_pixels: int = 0
    stage: Stage = Stage.ENCODING
    reading_seconds: float = 0.0
    device_seconds: float = 0.0
    denoise_seconds: float = 0.0
    stage_seconds: dict[Stage, float] = field(default_factory=dict)
    steps_taken: int = 0
    resumed_steps: int = 0
    step_interval: float | None = None
    last_step_at: float | None = None
    last_event_at: float | None = None
    last_preview_at: float | None = None

    def begin(self, request: Request, generation: Generation) -> None:
        """From encoding to denoising."""
        self.num_images = request.num_images
        self.num_pixels = request.num_pixels
        self.generation = generation

    @property
    def total_steps(self) -> int:
        """Denoise steps the job takes in all."""
        if self.generation is not None:
            return self.generation.num_steps
        return int(self.job.input.get("num_inference_steps", 0))

    @property
    def is_stepping(self) -> bool:
        """True between encoding and the last step."""
        return self.generation is not None and not self.generation.is_done

    @property
    def is_finished(self) -> bool:
        """True between the last step and decoding."""
        return self.generation is not None and self.generation.is_done

    @property
    def denoise_seconds_left(self) -> float:
        """Seconds until the last step at the pace so far; 0 before the first."""
        if self.generation is None or self.step_interval is None:
            return 0.0
        return (self.total_steps - self.generation.step_index) * self.step_interval

    def resident(self) -> Resident:
        """The scheduler's view. Only for members with a generation."""
        assert self.generation is not None
        return Resident(
            id=self.job.execution_id,
            batch_key=(self.job.model, self.generation.batch_key),
            rank=RANKS[self.job.priority],
            num_images=self.num_images,
            exclusive=self.job.deterministic,
        )

    def count_stage(self, seconds: float) -> None:
        """Book the device's time for the stage that the job is in."""
        self.stage_seconds[self.stage] = seconds
        self.device_seconds += seconds

    def count_step(self, started: float, ended: float, *, images: int) -> None:
        """Book one step taken together with others, `images` in all."""
        seconds = ended - started
        self.steps_taken += 1
        self.denoise_seconds += seconds
        self.device_seconds += seconds * self.num_images / images
        interval = ended - (started if self.last_step_at is None else self.last_step_at)
        if self.step_interval is None:
            self.step_interval = interval
        else:
            self.step_interval += _NEWEST * (interval - self.step_interval)
        self.last_step_at = ended

    @property
    def step(self) -> int:
        """Denoise steps done, by earlier attempts or this one."""
        if self.generation is not None:
            return self.generation.step_index
        return 0 if self.job.checkpoint is None else self.job.checkpoint.step

    def eta_seconds(self, seconds_after: float) -> float | None:
        """The measured interval between own steps times the steps left, plus `seconds_after`.

        None before the first step.
        """
        if self.step_interval is None:
            return None
        return (self.total_steps - self.step) * self.step_interval + seconds_after

    def least_seconds(self, seconds_after: float) -> float:
        """What the job still takes if every step were its own; 0 before the first step."""
        if not self.steps_taken:
            return 0.0
        own = self.denoise_seconds / self.steps_taken
        return (self.total_steps - self.step) * own + seconds_after

    def progress(
        self,
        stage: Stage,
        now: float,
        *,
        preview: bytes | None,
        seconds_after: float,
        load: ModelLoad | None = None,
    ) -> Progress:
        """The report of this moment; it asks for an event only when one is due.

        `seconds_after` is for what follows the last step, `load` the loading that the job waits
        for.
        """
        step = self.step
        is_due = (
            stage is not self.stage
            or preview is not None
            or step == self.total_steps
            or self.last_event_at is None
            or now - self.last_event_at >= LEAST_SECONDS_BETWEEN_EVENTS
        )
        self.stage = stage
        if is_due:
            self.last_event_at = now
        return Progress(
            job=self.job,
            stage=stage,
            step=step,
            total_steps=self.total_steps,
            eta_seconds=self.eta_seconds(seconds_after),
            preview=preview,
            event=is_due,
            load=load,
        )

    def usage(self) -> Usage:
        """What this attempt has cost so far."""
        return Usage(
            gpu_seconds=round(self.device_seconds, 6),
            steps=self.steps_taken,
            resumed_steps=self.resumed_steps,
        )

    def costs(self, *, storing: float) -> StageCosts | None:
        """What the stages took, `storing` in seconds; None when this attempt skipped any."""
        encoding = self.stage_seconds.get(Stage.ENCODING)
        decoding = self.stage_seconds.get(Stage.DECODING)
        if encoding is None or decoding is None or not self.steps_taken:
            return None
        return StageCosts(
            encoding=self.reading_seconds + encoding,
            step=self.denoise_seconds / self.steps_taken,
            device_step=(self.device_seconds - encoding - decoding) / self.steps_taken,
            decoding=decoding,
            storing=storing,
        )


def seconds_left(members: Iterable[Member]) -> dict[str, float]:
    """The models of `members`, each with how long its steps will take as far as measured."""
    left: dict[str, float] = {}
    for member in members:
        model = member.job.model
        left[model] = max(left.get(model, 0.0), member.denoise_seconds_left)
    return left
