"""`denoised models inspect`: what is in a GGUF file, told from its header within a moment."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from denoised.errors import CommandError
from denoised.sizes import format_size

if TYPE_CHECKING:
    from models.wan.gguf_inspection import Architecture, Inspection

_NAMES_SHOWN = 10


def inspect(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show architecture, configuration, number types, deviating tensors and memory needed.

    Memory is that of the weights, in each way they can rest in memory.
    """
    from models.errors import CheckpointError
    from models.wan.gguf_inspection import inspect_gguf

    try:
        found = inspect_gguf(file)
    except CheckpointError as error:
        raise CommandError(str(error)) from None
    if as_json:
        typer.echo(json.dumps(_as_json(file, found), indent=2))
        return
    for name, value in _summary(file, found):
        typer.echo(f"{name:15}{value}")
    typer.echo()
    typer.echo(f"{'type':8}{'tensors':>9}{'elements':>17}{'size':>11}")
    for type_, use in found.types.items():
        typer.echo(
            f"{type_.name:8}{use.tensors:>9,}{use.elements:>17,}{format_size(use.nbytes):>11}"
        )


def _summary(file: Path, found: Inspection) -> list[tuple[str, str]]:
    from models.weights.gguf.metadata import shown

    identity, header = found.identity, found.header
    stated = shown(identity.architecture) if identity.architecture is not None else "not stated"
    rows = [
        ("file", f"{file}, {format_size(found.file_bytes)}"),
        ("holds", identity.kind.value),
        ("architecture", stated),
    ]
    if identity.naming is not None:
        behind = f", behind {shown(identity.prefix)}" if identity.prefix else ""
        rows.append(("names", f"{identity.naming}{behind}"))
    rows.append(("tensors", f"{len(header.tensors):,} in GGUF version {header.version}"))
    if found.problem is not None:
        rows.append(("problem", found.problem))
    if found.architecture is not None:
        rows += _architecture(found.architecture)
    memory = ", ".join(f"{mode} {format_size(nbytes)}" for mode, nbytes in found.memory.items())
    return [*rows, ("memory", memory)]


def _architecture(found: Architecture) -> list[tuple[str, str]]:
    from models.weights.gguf.metadata import shown

    config = found.config
    shapes = [
        f"{shown(name)} is {list(shape)}, expected {list(expected)}"
        for name, (shape, expected) in found.misshapen.items()
    ]
    return [
        (
            "configuration",
            f"{_counted(config.num_layers, 'block')} of {config.dim} channels "
            f"in {_counted(config.num_heads, 'head')}, "
            f"{config.ffn_dim} in between, {_counted(len(config.vace_layers), 'VACE block')}, "
            f"text of {config.text_dim}",
        ),
        ("missing", _listed([shown(name) for name in found.missing])),
        ("unexpected", _listed([shown(name) for name in found.unexpected])),
        ("other shapes", _listed(shapes)),
    ]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _listed(items: list[str]) -> str:
    if not items:
        return "none"
    more = f", and {len(items) - _NAMES_SHOWN} more" if len(items) > _NAMES_SHOWN else ""
    return f"{len(items)}: {', '.join(items[:_NAMES_SHOWN])}{more}"


def _as_json(file: Path, found: Inspection) -> dict[str, Any]:
    identity, architecture = found.identity, found.architecture
    comparison: dict[str, Any] = {"configuration": None}
    if architecture is not None:
        comparison = {
            "configuration": {
                "dim": architecture.config.dim,
                **dataclasses.asdict(architecture.config),
            },
            "missing": architecture.missing,
            "unexpected": architecture.unexpected,
            "misshapen": {
                name: {"found": shape, "expected": expected}
                for name, (shape, expected) in architecture.misshapen.items()
            },
        }
    return {
        "file": str(file),
        "file_bytes": found.file_bytes,
        "gguf_version": found.header.version,
        "kind": identity.kind.name.lower().replace("_", "-"),
        "architecture": identity.architecture,
        "naming": identity.naming,
        "prefix": identity.prefix,
        "tensors": len(found.header.tensors),
        "problem": found.problem,
        **comparison,
        "types": {
            type_.name: {"tensors": use.tensors, "elements": use.elements, "bytes": use.nbytes}
            for type_, use in found.types.items()
        },
        "memory_bytes": dict(found.memory),
    }
