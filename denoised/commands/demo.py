"""`denoised demo`: a picture and a clip from the bundled models, through one real server.

A prompt for each goes in; the picture, the clip and a strip of the clip's frames are left as files,
whose names are the last lines printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from denoised import options
from denoised.errors import CommandError
from denoised.formats import format_of

if TYPE_CHECKING:
    from denoised.client import Client
    from server.schemas import Job

PICTURE_MODEL, CLIP_MODEL = "sana-demo", "wan-vace-demo"


def demo(
    prompt: Annotated[
        str, typer.Option(help="What the picture shows.")
    ] = "a red circle on a blue background",
    picture: Annotated[Path, typer.Option(help="Picture to write: .png, .jpg or .webp.")] = Path(
        "demo-output/picture.png"
    ),
    clip_prompt: Annotated[
        str, typer.Option(help="What the clip shows.")
    ] = "a red circle moving right on a blue background",
    clip: Annotated[
        Path,
        typer.Option(
            help="Clip to write: .mp4, .webm or .webp; its frames go beside it as a strip."
        ),
    ] = Path("demo-output/clip.mp4"),
    url: options.ServerUrl = None,
    data_dir: options.DataDir = None,
) -> None:
    """Make a picture and a clip with the bundled models.

    Without --url, a server that is already running on this machine is used if it offers both; if
    there is none, a private one is started for this command and stopped afterwards. With
    --data-dir, only a server on that directory is.
    """
    from jobs.schema import image, video

    picture_format = format_of(picture, "--picture", allowed=image.OUTPUT_FORMATS)
    clip_format = format_of(clip, "--clip", allowed=video.OUTPUT_FORMATS)

    from denoised.connect import connect
    from denoised.follow import open_view

    settings = options.load_settings(data_dir=data_dir)
    frames = clip.with_name(f"{clip.stem}-frames.jpg")
    with (
        open_view() as view,
        connect(
            url,
            PICTURE_MODEL,
            settings,
            view.note,
            also=[CLIP_MODEL],
            only_data_dir=data_dir is not None,
        ) as connection,
    ):
        client = connection.client
        job = _made(
            client, PICTURE_MODEL, {"prompt": prompt, "output_format": picture_format}, view
        )
        _write(picture, client.download(job.id))
        job = _made(client, CLIP_MODEL, {"prompt": clip_prompt, "output_format": clip_format}, view)
        _write(clip, client.download(job.id))
        _write(frames, client.download(job.id, variant="frames"))
    for what, file in (("picture", picture), ("clip", clip), ("its frames", frames)):
        typer.echo(f"{what:12}{file}")


def _made(client: Client, model: str, fields: dict[str, Any], view: Any) -> Job:
    from denoised.follow import follow

    view.note(f"{model}: {fields['prompt']}")
    job = follow(client, client.submit(model, fields, priority="interactive").id, view)
    if job.status != "succeeded":
        reason = job.error.message if job.error else "no reason was given"
        raise CommandError(f"job {job.id} {job.status}: {reason}")
    return job


def _write(file: Path, data: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error.strerror}") from None
