"""Command line options that bring pictures and clips into a job, and their way to the server.

Paths and numbers as a person writes them go in; the fields of a request's `input` come out, with
the id of the uploaded file where a path was. Every error names the option at fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from denoised.errors import CommandError

if TYPE_CHECKING:
    from denoised.api_errors import ApiError
    from denoised.client import Client

_PANEL = "Clips"


def _option(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_PANEL)


Frames = Annotated[int | None, _option("--frames", help="Length of the clip in frames.")]
Fps = Annotated[float | None, _option("--fps", help="Frames a second.")]
FlowShift = Annotated[float | None, _option("--flow-shift", help="Shift of the noise schedule.")]
FirstFrame = Annotated[
    Path | None, _option("--first-frame", "--image", help="Picture that the clip begins with.")
]
LastFrame = Annotated[Path | None, _option("--last-frame", help="Picture that the clip ends with.")]
FirstClip = Annotated[Path | None, _option("--first-clip", help="Clip to be continued.")]
LastClip = Annotated[Path | None, _option("--last-clip", help="Clip to be led up to.")]
Video = Annotated[Path | None, _option("--video", help="Clip to be changed, with --mask.")]
Mask = Annotated[
    Path | None, _option("--mask", help="Picture or clip, white where --video is made anew.")
]
Outpaint = Annotated[
    str | None,
    _option("--outpaint", help="Share of its sides to add around --video: LEFT,RIGHT,TOP,BOTTOM."),
]
ControlVideo = Annotated[
    Path | None, _option("--control-video", help="Clip that guides every frame, e.g. its depth.")
]
Control = Annotated[
    Literal["given", "grey", "layout"] | None,
    _option("--control", help="Take --control-video as given, turn it grey, or draw each --box."),
]
Boxes = Annotated[
    list[str] | None,
    _option("--box", help="Where a thing moves, as shares of the sides: X0,Y0,X1,Y1:X0,Y0,X1,Y1."),
]
References = Annotated[
    list[Path] | None,
    _option("--reference", help="Picture of what the clip is to contain; repeat for several."),
]

OPTIONS: Mapping[str, str] = {
    "prompt": "PROMPT",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "negative_prompt": "--negative",
    "num_images": "--n",
    "num_frames": "--frames",
    "first_frame": "--image/--first-frame",
    "layout": "--box",
    "reference_images": "--reference",
    "output_format": "--format",
}
"""Options and arguments that are not called like the field that they set."""


def option_of(param: str) -> str:
    """The option behind a field that the server refused, e.g. `input.reference_images.1`."""
    field = param.removeprefix("input.").partition(".")[0]
    return OPTIONS.get(field, f"--{field.replace('_', '-')}")


def refused(error: ApiError, instead: Mapping[str, str] | None = None) -> CommandError:
    """The server's refusal of fields in terms of the command line.

    `instead` holds what to say of a field where its option was not what set it.
    """
    told = instead or {}
    errors = error.errors or ((error.param or "", error.detail),)
    return CommandError(
        "; ".join(told.get(param) or f"{option_of(param)}: {text}" for param, text in errors)
    )


def check_files(media: Mapping[str, Path | Sequence[Path] | None]) -> None:
    """Raises CommandError (exit code 2) naming the option whose file cannot be read."""
    for field, given in media.items():
        for path in _paths(given):
            try:
                with path.open("rb"):
                    continue
            except OSError as error:
                raise CommandError(
                    f"{option_of(field)}: cannot read {path}: {error.strerror}", exit_code=2
                ) from None


def upload_files(
    client: Client, media: Mapping[str, Path | Sequence[Path] | None]
) -> dict[str, Any]:
    """The fields of `media` with every file uploaded and its id in its place.

    Raises CommandError when the server refuses one, ClientError otherwise.
    """
    from denoised.api_errors import ApiError

    fields: dict[str, Any] = {}
    for field, given in media.items():
        ids = []
        for path in _paths(given):
            try:
                ids.append(client.upload(path).id)
            except ApiError as error:
                raise CommandError(f"{option_of(field)}: {path}: {error.detail}") from None
        if ids:
            fields[field] = ids[0] if isinstance(given, Path) else ids
    return fields


def parse_outpaint(text: str | None) -> dict[str, float] | None:
    """`0.5,0,0,0.25` as the field `outpaint`. Raises CommandError (exit code 2)."""
    if text is None:
        return None
    sides = _numbers(text)
    if len(sides) != 4:
        raise CommandError(
            f"--outpaint: expected four numbers LEFT,RIGHT,TOP,BOTTOM, got {text!r}", exit_code=2
        )
    return dict(zip(("left", "right", "top", "bottom"), sides, strict=True))


def parse_boxes(texts: Sequence[str] | None) -> list[dict[str, list[float]]] | None:
    """Each `0,0,.5,.5:.5,.5,1,1` as an entry of the field `layout`.

    One place without a colon is a box that stays. Raises CommandError (exit code 2).
    """
    boxes = []
    for text in texts or ():
        start, _, end = text.partition(":")
        places = [_numbers(start), _numbers(end or start)]
        if any(len(place) != 4 for place in places):
            raise CommandError(
                f"--box: expected X0,Y0,X1,Y1 or X0,Y0,X1,Y1:X0,Y0,X1,Y1, got {text!r}",
                exit_code=2,
            )
        boxes.append({"start": places[0], "end": places[1]})
    return boxes or None


def _paths(given: Path | Sequence[Path] | None) -> Sequence[Path]:
    if given is None:
        return ()
    return (given,) if isinstance(given, Path) else given


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []
