"""`denoised run`: one job from prompt to file, with its progress shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from denoised import options
from denoised.errors import CommandError

if TYPE_CHECKING:
    from denoised.client import Client
    from server.schemas import Job

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


def run(
    model: Annotated[str, typer.Argument(help="Model id, e.g. sana-demo, or checkpoint folder.")],
    prompt: Annotated[str, typer.Argument(help="What the picture should show.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write. [MODEL-SEED.png in this folder]"),
    ] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoise steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise. [random]")] = None,
    negative: Annotated[str | None, typer.Option(help="What the picture should not show.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler, one of the model's.")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="Number of pictures.")] = None,
    format: Annotated[
        Literal["png", "jpeg", "webp"] | None,
        typer.Option(help="File format. [by the suffix of --output, else png]"),
    ] = None,
    priority: Annotated[options.PriorityName, typer.Option(help="Urgency.")] = "interactive",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bytes for the same input.")
    ] = False,
    url: options.ServerUrl = None,
    data_dir: options.DataDir = None,
) -> None:
    """Make a picture: submit the job, show its progress, save the result.

    Without --url, a server that is already running on this machine is used; if there is none, a
    private one is started for this command and stopped afterwards.
    """
    settings = options.load_settings(data_dir=data_dir)
    fields = {
        "prompt": prompt,
        "negative_prompt": negative,
        "width": width,
        "height": height,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "sampler": sampler,
        "num_images": n,
        "output_format": format or _format_of(output),
    }
    request: dict[str, Any] = {name: v for name, v in fields.items() if v is not None}
    if output is not None:
        _make_folder(output.parent)

    from denoised.connect import connect
    from denoised.follow import open_view

    with open_view() as view, connect(url, model, settings, view.note) as connection:
        client = connection.client
        job = client.submit(
            connection.model_id, request, priority=priority, deterministic=deterministic
        )
        job = _follow_or_cancel(client, job.id, view)
        files = _save(client, job, output) if job.status == "succeeded" else []
    if not files:
        reason = job.error.message if job.error else "no reason was given"
        raise CommandError(f"job {job.id} {job.status}: {reason}")
    for file, result in zip(files, job.outputs, strict=True):
        typer.echo(f"{file}  ({result.width}x{result.height}, seed {result.seed}, job {job.id})")


def _follow_or_cancel(client: Client, job_id: str, view: Any) -> Job:
    from denoised.follow import follow

    try:
        return follow(client, job_id, view)
    except KeyboardInterrupt:
        client.cancel(job_id)
        print(f"cancelled job {job_id}", file=sys.stderr)
        raise


def _format_of(output: Path | None) -> str | None:
    if output is None:
        return None
    if output.suffix.lower() not in FORMATS:
        raise CommandError(
            f"--output: the suffix {output.suffix!r} is none of {', '.join(FORMATS)}; "
            "change it or give --format",
            exit_code=2,
        )
    return FORMATS[output.suffix.lower()]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"--output: cannot make {folder}: {error.strerror}", exit_code=2
        ) from None


def _save(client: Client, job: Job, output: Path | None) -> list[Path]:
    """Write every picture; with several, a number goes in front of the suffix."""
    suffix = SUFFIXES[job.input["output_format"]]
    path = output or Path(f"{job.model}-{job.outputs[0].seed}{suffix}")
    files = []
    for result in job.outputs:
        file = path
        if len(job.outputs) > 1:
            file = path.with_name(f"{path.stem}-{result.index}{path.suffix}")
        try:
            file.write_bytes(client.download(job.id, result.index))
        except OSError as error:
            raise CommandError(
                f"cannot write {file}: {error.strerror} (the picture is kept as job {job.id})"
            ) from None
        files.append(file)
    return files
