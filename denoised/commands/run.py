"""`denoised run`: one job from prompt to file, with its progress shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from denoised import clip_options, options
from denoised.errors import CommandError
from denoised.formats import SUFFIXES, format_of, suffixes_of

if TYPE_CHECKING:
    from denoised.api_errors import ApiError
    from denoised.client import Client
    from server.schemas import Job


def run(
    model: Annotated[str, typer.Argument(help="Model id, e.g. sana-demo, or checkpoint folder.")],
    prompt: Annotated[str, typer.Argument(help="What the picture or clip should show.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write. [MODEL-SEED and the suffix of the format]"
        ),
    ] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoise steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise. [random]")] = None,
    negative: Annotated[str | None, typer.Option(help="What it should not show.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler, one of the model's.")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="Number of pictures.")] = None,
    format: Annotated[
        Literal["png", "jpeg", "webp", "mp4", "webm"] | None,
        typer.Option(help="File format. [by the suffix of --output, else png or mp4]"),
    ] = None,
    priority: Annotated[options.PriorityName, typer.Option(help="Urgency.")] = "interactive",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bytes for the same input.")
    ] = False,
    deadline: Annotated[
        float | None,
        typer.Option(
            help="Seconds after which the result is of no use: the job is refused or stopped."
        ),
    ] = None,
    frames: clip_options.Frames = None,
    fps: clip_options.Fps = None,
    flow_shift: clip_options.FlowShift = None,
    first_frame: clip_options.FirstFrame = None,
    last_frame: clip_options.LastFrame = None,
    first_clip: clip_options.FirstClip = None,
    last_clip: clip_options.LastClip = None,
    video: clip_options.Video = None,
    mask: clip_options.Mask = None,
    outpaint: clip_options.Outpaint = None,
    control_video: clip_options.ControlVideo = None,
    control: clip_options.Control = None,
    box: clip_options.Boxes = None,
    reference: clip_options.References = None,
    url: options.ServerUrl = None,
    data_dir: options.DataDir = None,
) -> None:
    """Make a picture or a clip: submit the job, show its progress, save the result.

    Without --url, a server that is already running on this machine is used; if there is none, or
    MODEL is a folder or file that it does not offer, a private one is started for this command and
    stopped afterwards. With --data-dir, only a server on that directory is used.
    """
    settings = options.load_settings(data_dir=data_dir)
    hint = "change it or give --format"
    chosen = format_of(output, "-o/--output", hint=hint) if output and not format else None
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
        "output_format": format or chosen,
        "num_frames": frames,
        "fps": fps,
        "flow_shift": flow_shift,
        "outpaint": clip_options.parse_outpaint(outpaint),
        "control": control or ("layout" if box else None),
        "layout": clip_options.parse_boxes(box),
    }
    media: dict[str, Path | list[Path] | None] = {
        "first_frame": first_frame,
        "last_frame": last_frame,
        "first_clip": first_clip,
        "last_clip": last_clip,
        "video": video,
        "mask": mask,
        "control_video": control_video,
        "reference_images": reference,
    }
    clip_options.check_files(media)
    request: dict[str, Any] = {name: v for name, v in fields.items() if v is not None}
    if output is not None:
        _make_folder(output.parent)

    from denoised.api_errors import ApiError
    from denoised.connect import connect
    from denoised.follow import describe_output, open_view

    with (
        open_view() as view,
        connect(url, model, settings, view.note, only_data_dir=data_dir is not None) as connection,
    ):
        client = connection.client
        request |= clip_options.upload_files(client, media)
        try:
            job = client.submit(
                connection.model_id,
                request,
                priority=priority,
                deterministic=deterministic,
                deadline_seconds=deadline,
            )
        except ApiError as error:
            if (error.param or "").startswith("input."):
                by_suffix = output if chosen else None
                raise _refused(error, client, connection.model_id, by_suffix) from None
            raise
        job = _follow_or_cancel(client, job.id, view)
        files = _save(client, job, output) if job.status == "succeeded" else []
    if not files:
        reason = job.error.message if job.error else "no reason was given"
        raise CommandError(f"job {job.id} {job.status}: {reason}")
    for file, result in zip(files, job.outputs, strict=True):
        what = describe_output(result)
        typer.echo(f"{file}  ({what}, seed {result.seed}, job {job.id})")


def _follow_or_cancel(client: Client, job_id: str, view: Any) -> Job:
    from denoised.follow import follow

    try:
        return follow(client, job_id, view)
    except KeyboardInterrupt:
        client.cancel(job_id)
        print(f"cancelled job {job_id}", file=sys.stderr)
        raise


def _refused(error: ApiError, client: Client, model: str, output: Path | None) -> CommandError:
    """The server's refusal of fields; `output` is the file whose suffix chose the format."""
    param = "input.output_format"
    if output is None or param not in (error.param, *(param for param, _ in error.errors)):
        return clip_options.refused(error)
    formats = client.model(model).input_schema["properties"]["output_format"]["enum"]
    suffixes = ", ".join(suffixes_of(formats))
    text = f"-o/--output: {model} cannot make {output.suffix}, but {suffixes}"
    return clip_options.refused(error, {param: text})


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"-o/--output: cannot make {folder}: {error.strerror}", exit_code=2
        ) from None


def _save(client: Client, job: Job, output: Path | None) -> list[Path]:
    """Write every result; with several, a number goes in front of the suffix."""
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
                f"cannot write {file}: {error.strerror} (the result is kept as job {job.id})"
            ) from None
        files.append(file)
    return files
