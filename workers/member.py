"""One job inside the engine, from claim to finish: its generation, its clock, what it has used.

The engine moves members through encoding, denoising, decoding and storing; a member knows how to
describe itself to the scheduler (`resident`) and to the job layer (`progress`, `usage`).
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.types import ClaimedJob, ModelLoad, Priority, Progress, Stage, Usage
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

    Of the request only the counts stay, `num_images` and `num_pixels` of everything asked for: its
    clips would take memory for as long as the job runs.
    """

    job: ClaimedJob
    generation: Generation | None = None
    num_images: int = 1
    num_pixels: int = 0
    stage: Stage = Stage.ENCODING
    device_seconds: float = 0.0
    denoise_seconds: float = 0.0
    steps_taken: int = 0
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

        The ETA is the measured interval between own steps times the steps left, plus
        `seconds_after` for what follows the last one; absent before the first step. `load` is the
        loading that the job waits for.
        """
        step = 0 if self.generation is None else self.generation.step_index
        eta = None
        if self.step_interval is not None:
            eta = (self.total_steps - step) * self.step_interval + seconds_after
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
            eta_seconds=eta,
            preview=preview,
            event=is_due,
            load=load,
        )

    def usage(self) -> Usage:
        """What this attempt has cost so far."""
        return Usage(gpu_seconds=round(self.device_seconds, 6), steps=self.steps_taken)
