"""`denoised jobs`: looking at jobs and cancelling them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from denoised import options
from denoised.errors import CommandError

if TYPE_CHECKING:
    from denoised.client import Client
    from server.schemas import Job, QueuePlace

app = typer.Typer(help="List, show, watch and cancel jobs.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="Id of the job.")]
StatusName = Literal["queued", "running", "succeeded", "failed", "cancelled"]


def _client(url: str | None, data_dir: Path | None) -> Client:
    from denoised.client import Client
    from denoised.connect import find_url

    return Client(find_url(url, options.load_settings(data_dir=data_dir)))


@app.command("list")
def list_jobs(
    status: Annotated[StatusName | None, typer.Option(help="Only these.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most to show.")] = 20,
    url: options.ServerUrl = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """List jobs, newest first."""
    with _client(url, data_dir) as client:
        page = client.list(status=status, model=model, limit=limit)
    if as_json:
        typer.echo(page.model_dump_json(indent=2))
        return
    if not page.data:
        typer.echo("no jobs")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "model", "status", "steps", "attempt", "created", "prompt", box=None)
    for job in page.data:
        table.add_row(
            job.id,
            job.model,
            str(job.stage or job.status),
            f"{job.progress.step}/{job.progress.total_steps}",
            str(job.attempt),
            f"{job.created_at.astimezone():%H:%M:%S}",
            _shorten(str(job.input.get("prompt", ""))),
        )
    # A table cut to the width of a terminal that is not there would lose ids.
    console = Console() if Console().is_terminal else Console(width=200)
    console.print(table, markup=False)


@app.command()
def show(
    job_id: JobId,
    url: options.ServerUrl = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show one job."""
    with _client(url, data_dir) as client:
        _print_job(client.get(job_id), as_json)


@app.command()
def watch(
    job_id: JobId,
    url: options.ServerUrl = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Follow a job until it ends; the exit code is 1 unless it succeeds."""
    from denoised.follow import follow, open_view

    with _client(url, data_dir) as client:
        if as_json:
            for event in client.watch(job_id):
                typer.echo(json.dumps({"id": event.id, **event.data}, ensure_ascii=False))
            job = client.get(job_id)
        else:
            with open_view() as view:
                job = follow(client, job_id, view)
            _print_job(job, as_json=False)
    raise typer.Exit(0 if job.status == "succeeded" else 1)


@app.command()
def cancel(
    job_id: JobId,
    url: options.ServerUrl = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Cancel a job; a running one ends at its next step."""
    with _client(url, data_dir) as client:
        job = client.cancel(job_id)
    if as_json:
        _print_job(job, as_json)
    elif job.status == "running":
        typer.echo(f"{job.id} is being cancelled")
    elif job.status == "cancelled":
        typer.echo(f"{job.id} is cancelled")
    else:
        raise CommandError(f"{job.id} has already {job.status}")


def _print_job(job: Job, as_json: bool) -> None:
    if as_json:
        typer.echo(job.model_dump_json(indent=2))
        return
    from denoised.follow import describe_output

    stage = f" ({job.stage})" if job.stage else ""
    typer.echo(f"{job.id}  {job.status}{stage}")
    rows = {
        "model": job.model,
        "prompt": _shorten(str(job.input.get("prompt", "")), 100),
        "input": ", ".join(f"{k} {v}" for k, v in job.input.items() if _is_telling(k, v)),
        "progress": f"{job.progress.step} of {job.progress.total_steps} steps",
        "attempt": str(job.attempt),
        "position": _place(job.queue) if job.queue else None,
        "gpu time": f"{job.usage.gpu_seconds:.2f} s" if job.usage.gpu_seconds else None,
        "error": f"{job.error.code}: {job.error.message}" if job.error else None,
        "outputs": "\n            ".join(
            f"{output.url}  ({describe_output(output)})" for output in job.outputs
        )
        or None,
    }
    for name, value in rows.items():
        if value is not None:
            typer.echo(f"  {name:9} {value}")


def _place(queue: QueuePlace) -> str:
    text = f"{queue.position} jobs before it"
    if queue.estimated_start_at is not None and queue.estimated_finish_at is not None:
        text += f", starts about {queue.estimated_start_at.astimezone():%H:%M:%S}"
        text += f" and ends about {queue.estimated_finish_at.astimezone():%H:%M:%S}"
    return text


def _is_telling(field: str, value: object) -> bool:
    """Whether a field of the input says anything in a row: media that are absent do not."""
    is_absent = value is None or value == []
    if field == "outpaint" and isinstance(value, dict):
        is_absent = not any(value.values())
    return not is_absent and "prompt" not in field


def _shorten(text: str, width: int = 48) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
