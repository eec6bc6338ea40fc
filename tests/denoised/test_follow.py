"""What a person sees of a running job."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from denoised.client import JobEvent
from denoised.follow import BarView, LineView, describe, describe_interruption
from jobs.types import EventType
from workers.checkpoint_file import UNREADABLE
from workers.isolation import MADE_ROOM
from workers.model_switching import NOT_LOADED


def event(kind, **data):
    return JobEvent("1-0", EventType(kind), {"type": kind, "attempt": 1, **data})


def step(number, *, total=20, attempt=1, eta=None, stage="denoising"):
    progress = {
        "step": number,
        "total_steps": total,
        "percent": 100 * number / total,
        "eta_seconds": eta,
    }
    return event("job.progress", status="running", stage=stage, attempt=attempt, progress=progress)


def test_lines_tell_stages_and_every_fifth_of_the_steps(capsys):
    with LineView() as view:
        view.note("loading sana-demo")
        view.show(event("job.queued", status="queued", stage=None, attempt=0))
        view.show(event("job.started", status="running", stage="encoding"))
        for number in range(1, 21):
            view.show(step(number, eta=0.5 if number == 4 else None))
        view.show(step(20, stage="decoding"))
        view.show(event("job.succeeded", status="succeeded", stage=None))
    assert capsys.readouterr().err.splitlines() == [
        "loading sana-demo",
        "queued",
        "encoding",
        "denoising: step 4/20, 0.5 s left",
        "denoising: step 8/20",
        "denoising: step 12/20",
        "denoising: step 16/20",
        "denoising: step 20/20",
        "decoding",
        "succeeded",
    ]


def test_lines_tell_of_a_lost_worker_and_count_again(capsys):
    with LineView() as view:
        view.show(step(20))
        view.show(event("job.requeued", status="queued", cause="lease_lapsed"))
        view.show(step(4, attempt=2))
    assert capsys.readouterr().err.splitlines() == [
        "denoising: step 20/20",
        "the worker was lost (lease_lapsed), queued again",
        "denoising (attempt 2): step 4/20",
    ]


def test_lines_tell_where_a_job_goes_on_and_when_it_cannot(capsys):
    with LineView() as view:
        view.show(event("job.requeued", status="queued", cause="drained", step=12))
        view.show(event("job.restarted", status="running", cause="checkpoint_damaged", step=0))
    assert capsys.readouterr().err.splitlines() == [
        "its worker was stopped, queued again to go on from step 12",
        "cannot go on from the checkpoint (checkpoint_damaged), starting anew",
    ]


@pytest.mark.parametrize("cause", [NOT_LOADED, MADE_ROOM, UNREADABLE, "drained"])
def test_a_job_that_was_handed_back_was_not_lost(cause):
    text = describe_interruption({"type": "job.requeued", "cause": cause})
    assert "lost" not in text
    assert text.endswith(", queued again")


def loading(nbytes, eta, *, step=0, status="queued", attempt=0):
    progress = {"step": step, "total_steps": 20, "percent": 5.0 * step, "eta_seconds": None}
    load = {"bytes": nbytes, "eta_seconds": eta}
    return event(
        "job.progress",
        status=status,
        stage="loading",
        attempt=attempt,
        progress=progress,
        loading=load,
    )


@pytest.mark.parametrize(
    ("nbytes", "eta", "told"),
    [
        (1_500_000_000, 12.3, "loading the model (1.50 GB, 12 s left)"),
        (1_500_000_000, None, "loading the model (1.50 GB)"),
        (0, 0.2, "loading the model (1 s left)"),
        (0, None, "loading the model"),
    ],
)
def test_lines_tell_of_a_load_that_a_job_waits_for(capsys, nbytes, eta, told):
    with LineView() as view:
        view.show(loading(nbytes, eta))
    assert capsys.readouterr().err == f"{told}\n"


def test_lines_tell_of_a_load_of_a_job_that_goes_on_from_a_checkpoint(capsys):
    with LineView() as view:
        view.show(step(12))
        view.show(event("job.requeued", status="queued", cause="drained", step=12))
        view.show(loading(0, 3, step=12, attempt=1))
        view.show(step(16, attempt=2))
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "loading the model (3 s left)",
        "denoising (attempt 2): step 16/20",
    ]


def test_the_bar_shows_a_load_only_until_the_steps_begin():
    output = io.StringIO()
    with BarView(Console(file=output, force_terminal=True, width=120)) as view:
        view.show(loading(1_500_000_000, 12))
        view._progress.refresh()
        assert "loading the model (1.50 GB, 12 s left)" in output.getvalue()
        view.show(step(1))
        view._progress.refresh()
    assert "loading" not in output.getvalue().rsplit("denoising", 1)[1]


def test_the_bar_shows_steps_stage_attempt_and_time_left():
    output = io.StringIO()
    with BarView(Console(file=output, force_terminal=True, width=100)) as view:
        view.show(event("job.queued", status="queued", stage=None, attempt=0))
        view.show(step(7, attempt=2, eta=1.25))
        view.show(event("job.preview", status="running", stage="denoising"))
        view._progress.refresh()
        shown = output.getvalue()
    assert "step 7/20" in shown
    assert "denoising (attempt 2)" in shown
    assert "1.2 s left" in shown


def test_a_first_attempt_is_not_counted_aloud():
    assert describe({"stage": "decoding", "attempt": 1}) == "decoding"
    assert describe({"stage": None, "status": "queued", "attempt": 0}) == "queued"
