"""`denoised models`: what can be asked of which model, and what files of weights hold."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from denoised import options
from denoised.commands import models_inspect, models_quantize
from denoised.errors import ClientError

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
    """List models with their limits and, if a server runs, whether it holds them in memory."""
    from denoised.client import Client
    from denoised.connect import find_url

    settings = options.load_settings(data_dir=data_dir, models=tuple(model) if model else None)
    specs = options.discover_models(settings)
    try:
        with Client(find_url(url, settings), timeout=5.0) as client:
            states = {entry.id: entry.residency for entry in client.models().data}
    except ClientError:
        if url is not None:
            raise
        states = {}
    if as_json:
        entries = [
            spec.model_dump(mode="json", exclude={"source"})
            | {"residency": states[spec.id].model_dump() if spec.id in states else None}
            for spec in specs
        ]
        typer.echo(json.dumps(entries, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "task", "width", "height", "steps", "guidance", "state", box=None)
    for spec in specs:
        table.add_row(
            spec.id,
            spec.task,
            _range(spec.width.default, spec.width.minimum, spec.width.maximum),
            _range(spec.height.default, spec.height.minimum, spec.height.maximum),
            _range(
                spec.num_inference_steps.default,
                spec.num_inference_steps.minimum,
                spec.num_inference_steps.maximum,
            ),
            _range(
                spec.guidance_scale.default,
                spec.guidance_scale.minimum,
                spec.guidance_scale.maximum,
            ),
            states[spec.id].state if spec.id in states else "no server",
        )
    console = Console() if Console().is_terminal else Console(width=120)
    console.print(table)


def _range(default: float, minimum: float, maximum: float) -> str:
    return f"{default:g} ({minimum:g}..{maximum:g})"
