"""Showing a job while it runs: a live bar on a terminal, plain lines anywhere else.

Events of the job go in one by one; what a person wants to know comes out on stderr: queue place,
stage, steps, time left, and that a lost attempt is being made again, and from where.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from denoised.client import Client, JobEvent
from denoised.sizes import format_size
from jobs.types import EventType
from server.schemas import Job, JobOutput

LINE_EVERY_PERCENT = 20


class View(Protocol):
    """Something that shows a job. A context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def note(self, text: str) -> None:
        """Say what is being waited for before there is a job."""

    def show(self, event: JobEvent) -> None:
        """Take in the next event of the job."""


def open_view() -> View:
    """The view that fits stderr."""
    console = Console(stderr=True)
    return BarView(console) if console.is_terminal else LineView()


def follow(client: Client, job_id: str, view: View) -> Job:
    """Show the job until it ends; returns its final record."""
    for event in client.watch(job_id):
        view.show(event)
    return client.get(job_id)


def describe(data: dict[str, Any]) -> str:
    """A few words for what a job is doing or waits for, e.g. `denoising (attempt 2)`."""
    text = str(data.get("stage") or data.get("status") or "")
    if loading := data.get("loading"):
        text = _describe_loading(loading)
    attempt = data.get("attempt") or 0
    return f"{text} (attempt {attempt})" if attempt > 1 else text


def _describe_loading(loading: dict[str, Any]) -> str:
    """`loading the model (1.50 GB, 12 s left)`, without what is not known."""
    parts = []
    if loading["bytes"]:
        parts.append(format_size(loading["bytes"]))
    if (eta := loading.get("eta_seconds")) is not None:
        parts.append(f"{max(1, round(eta))} s left")
    return f"loading the model ({', '.join(parts)})" if parts else "loading the model"


def describe_output(output: JobOutput) -> str:
    """A result in a few words, e.g. `64x64` or `64x64, 9 frames at 16 fps, h264`."""
    text = f"{output.width}x{output.height}"
    if output.num_frames is not None and output.fps is not None:
        text += f", {output.num_frames} frames at {output.fps:g} fps, {output.codec}"
    return text


def describe_interruption(data: dict[str, Any]) -> str:
    """What a job.requeued or job.restarted event means, in a line."""
    if data["type"] == EventType.RESTARTED:
        return f"cannot go on from the checkpoint ({data.get('cause')}), starting anew"
    cause = str(data.get("cause"))
    text = f"{_HANDED_BACK.get(cause, f'the worker was lost ({cause})')}, queued again"
    return f"{text} to go on from step {data['step']}" if data.get("step") else text


_HANDED_BACK = {
    "drained": "its worker was stopped",
    "made_room": "its worker may not run it beside another job",
    "model_not_loaded": "its worker could not load the model",
    "checkpoint_unreadable": "its worker could not read the checkpoint",
}
"""What to say of jobs that a living worker has handed back, by cause; all others were lost."""

_INTERRUPTIONS = (EventType.REQUEUED, EventType.RESTARTED)


class BarView:
    """A progress bar that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[steps]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
            console=console,
        )
        self._task = self._progress.add_task("", total=None, steps="", eta="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.update(self._task, eta="")
        self._progress.stop()

    def note(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def show(self, event: JobEvent) -> None:
        if event.type is EventType.PREVIEW:
            return
        self._progress.update(self._task, description=describe(event.data), eta="")
        progress = event.data.get("progress")
        if event.type in _INTERRUPTIONS:
            self._progress.update(self._task, total=None, steps="")
            self._progress.console.print(describe_interruption(event.data))
        if progress:
            step, total = progress["step"], progress["total_steps"]
            eta = progress.get("eta_seconds")
            self._progress.update(
                self._task,
                total=total,
                completed=step,
                steps=f"step {step}/{total}",
                eta="" if eta is None else f"{eta:.1f} s left",
            )


class LineView:
    """A line for every change worth a line, for logs and pipes."""

    def __init__(self) -> None:
        self._last = ""
        self._percent = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def note(self, text: str) -> None:
        self._print(text)

    def show(self, event: JobEvent) -> None:
        if event.type is EventType.PREVIEW:
            return
        text = describe(event.data)
        if event.type in _INTERRUPTIONS:
            text = describe_interruption(event.data)
            self._percent = 0.0
        progress = event.data.get("progress")
        # A job that goes on from a checkpoint waits for a load with its steps already done.
        if progress and progress["step"] and not event.data.get("loading"):
            if progress["percent"] < min(100.0, self._percent + LINE_EVERY_PERCENT):
                return
            if event.data.get("stage") == "denoising":
                self._percent = progress["percent"]
                text += f": step {progress['step']}/{progress['total_steps']}"
                if (eta := progress.get("eta_seconds")) is not None:
                    text += f", {eta:.1f} s left"
        self._print(text)

    def _print(self, text: str) -> None:
        if text and text != self._last:
            print(text, file=sys.stderr, flush=True)
            self._last = text
