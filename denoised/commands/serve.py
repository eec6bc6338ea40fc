"""`denoised serve`: everything one machine needs, under the supervisor."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from denoised import options


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes any free one. [8000]")
    ] = None,
    data_dir: options.DataDir = None,
    model: options.Models = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes. [one per GPU, else one]")
    ] = None,
    redis_url: options.RedisUrl = None,
    device: options.Device = None,
    dtype: options.DType = None,
    log_level: options.Verbosity = None,
    die_with: options.DieWith = None,
) -> None:
    """Run the server on this machine: API, keeper, workers and, unless given, a Redis."""
    options.die_with_parent(die_with, signal.SIGTERM)
    settings = options.load_settings(
        host=host,
        port=port,
        data_dir=data_dir,
        models=tuple(model) if model else None,
        workers=workers,
        redis_url=redis_url,
        device=device,
        dtype=dtype,
        log_level=log_level,
    )
    from denoised.logs import configure_logging
    from denoised.supervisor import serve as supervise

    configure_logging("supervisor", settings.log_level)
    specs = options.discover_models(settings)
    raise typer.Exit(supervise(settings, [spec.id for spec in specs]))
