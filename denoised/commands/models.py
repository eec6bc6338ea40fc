"""`denoised models`: what can be asked of which model, and what files of weights hold."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from denoised import options
from denoised.commands import models_inspect, models_quantize
from denoised.errors import ClientError

if TYPE_CHECKING:
    from config.settings import Settings
    from server.schemas import Model

app = typer.Typer(help="Configured models and files of weights.", no_args_is_help=True)
app.command("inspect")(models_inspect.inspect)
app.command("quantize")(models_quantize.quantize)


@app.command("list")
def list_models(
    model: options.Models = None,
    url: options.ServerUrl = None,
    data_dir: options.DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models of a server with their limits and whether it holds them in memory.

    Where no server answers, the models that one started here would offer are listed. With --model,
    only those are, whether a server offers them or not.
    """
    from denoised.connect import find_url, id_among

    settings = options.load_settings(data_dir=data_dir, models=tuple(model) if model else None)
    address = find_url(url, settings)
    served = _served(address, is_given=url is not None)
    if served is None:
        print(f"no server answers at {address}: these are models on this machine", file=sys.stderr)
        listed = _local(settings)
    elif model:
        ids = {name: id_among(served, name) for name in model}
        others = tuple(name for name, id in ids.items() if id is None)
        listed = [served[id] for id in ids.values() if id is not None]
        if others:
            listed += _local(settings.model_copy(update={"models": others}))
    else:
        listed = list(served.values())
    held = served or {}
    if as_json:
        entries = [
            entry.model_dump(mode="json") | ({} if entry.id in held else {"residency": None})
            for entry in listed
        ]
        typer.echo(json.dumps(entries, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "task", "width", "height", "steps", "guidance", "state", box=None)
    for entry in listed:
        columns = ("width", "height", "num_inference_steps", "guidance_scale")
        state = entry.residency.state if entry.id in held else None
        table.add_row(
            entry.id,
            entry.task,
            *(_range(entry, name) for name in columns),
            state or ("no server" if served is None else "not offered"),
        )
    console = Console() if Console().is_terminal else Console(width=120)
    console.print(table)


def _served(url: str, *, is_given: bool) -> dict[str, Model] | None:
    """The models of the server at `url` by id, or None where there is no denoised server.

    Raises ClientError when one was named, or when a denoised server refuses.
    """
    from denoised.api_errors import UNKNOWN, ApiError
    from denoised.client import Client

    try:
        with Client(url, timeout=5.0) as client:
            return {entry.id: entry for entry in client.models().data}
    except ClientError as error:
        # Some other program may listen at the default address.
        if is_given or (isinstance(error, ApiError) and error.code != UNKNOWN):
            raise
        return None


def _local(settings: Settings) -> list[Model]:
    """The configured models in the words of a server without workers."""
    from server.model_views import model_view

    return [model_view(spec, []) for spec in options.discover_models(settings)]


def _range(entry: Model, field: str) -> str:
    """The default, and the range around it where there is one."""
    default, limits = entry.defaults.get(field), entry.limits.get(field)
    if default is None or limits is None:
        return ""
    if limits["minimum"] == limits["maximum"]:
        return f"{default:g}"
    return f"{default:g} ({limits['minimum']:g}..{limits['maximum']:g})"
