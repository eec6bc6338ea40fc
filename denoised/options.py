"""Command line options that several commands share, and how they become settings.

A flag beats its `DENOISED_*` variable, which beats the default; flags that were not given do not
reach `Settings` at all.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from denoised.errors import CommandError

if TYPE_CHECKING:
    from config.model_spec import ModelSpec
    from config.settings import Settings

LogLevel = Literal["debug", "info", "warning", "error"]
PriorityName = Literal["interactive", "standard", "batch"]

_WEIGHT_SUFFIXES = (".gguf", ".safetensors", ".ckpt", ".pt", ".pth", ".bin")

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where queue and results are kept.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="Bundled model or checkpoint folder; repeat for several."),
]
RedisUrl = Annotated[
    str | None, typer.Option("--redis-url", help="Redis to use instead of an embedded one.")
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
DType = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"] | None,
    typer.Option("--dtype", help="Number format of the weights."),
]
Verbosity = Annotated[LogLevel | None, typer.Option("--log-level", help="Least level logged.")]
DieWith = Annotated[
    int | None, typer.Option("--die-with", hidden=True, help="End when this parent process does.")
]
ServerUrl = Annotated[
    str | None,
    typer.Option("--url", envvar="DENOISED_URL", help="Server to talk to.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's JSON.")]


def load_settings(**flags: Any) -> Settings:
    """Settings from the environment, replaced by the `flags` that are not None.

    Raises CommandError (exit code 2) naming the variable or field at fault.
    """
    from pydantic import ValidationError

    from config.settings import Settings

    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        name = f"--{field.replace('_', '-')}" if flags.get(field) is not None else ""
        name = name or f"DENOISED_{field.upper()}"
        message = problem["msg"].removeprefix("Value error, ")
        raise CommandError(f"{name}: {message} (got {problem['input']!r})", exit_code=2) from None


def check_path(model: str) -> None:
    """Raises CommandError (exit code 2) when `model` can only be a path and leads nowhere."""
    path = Path(model).expanduser()
    is_path = "/" in model or model.lower().endswith(_WEIGHT_SUFFIXES)
    if is_path and not path.exists():
        raise CommandError(f"{model}: no such file or folder", exit_code=2)


def discover_models(settings: Settings) -> tuple[ModelSpec, ...]:
    """The specs of the configured models. Raises CommandError (exit code 2) if none is usable."""
    from models.catalogue import discover
    from models.errors import CheckpointError

    for name in settings.models:
        check_path(name)
    try:
        return discover(settings.models)
    except CheckpointError as error:
        raise CommandError(str(error), exit_code=2) from None


def die_with_parent(parent: int | None, signum: signal.Signals) -> None:
    """Obey `--die-with`."""
    if parent is not None:
        from denoised.lifeline import die_with

        die_with(parent, signum)
