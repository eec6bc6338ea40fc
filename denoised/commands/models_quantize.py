"""`denoised models quantize`: a Wan-VACE transformer in safetensors becomes a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from denoised.errors import CommandError
from denoised.sizes import format_size


def quantize(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="A safetensors file (of shards, any), a folder of them, or a diffusers folder.",
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The GGUF file to write.")],
    type_name: Annotated[
        str, typer.Option("--type", help="Mixture of number types, e.g. Q4_K_M or Q8_0.")
    ],
    threads: Annotated[
        int,
        typer.Option(min=1, help="Processor threads; more than one pays on idle cores at most."),
    ] = 1,
    force: Annotated[
        bool, typer.Option("--force", help="Replace DST if it is already there.")
    ] = False,
) -> None:
    """Quantise a Wan-VACE transformer to GGUF, with the mixed precision the community uses."""
    from models.errors import CheckpointError
    from models.weights.gguf.file_type import FileType

    if type_name.upper() not in FileType.__members__:
        known = ", ".join(FileType.__members__)
        raise CommandError(f"--type {type_name!r} cannot be written, expected {known}", exit_code=2)
    if destination.suffix != ".gguf":
        raise CommandError(f"{destination}: expected a name that ends in .gguf", exit_code=2)
    if destination.exists() and not force:
        raise CommandError(f"{destination}: exists already; --force replaces it", exit_code=2)

    import torch
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from models.wan.gguf_convert import convert_to_gguf

    torch.set_num_threads(threads)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("quantising", total=None)
        try:
            result = convert_to_gguf(
                source,
                destination,
                FileType[type_name.upper()],
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except CheckpointError as error:
            raise CommandError(str(error)) from None
    used = ", ".join(f"{count} {type_.name}" for type_, count in result.types.items())
    typer.echo(f"{destination}: {format_size(result.file_bytes)}, tensors: {used}")
    typer.echo(
        f"{format_size(result.source_bytes)} read, "
        f"ratio {result.file_bytes / result.source_bytes:.3f} to the source"
    )
