"""`denoised api`, `worker`, `keeper`: the processes of a server, one at a time.

The supervisor runs these; a larger deployment runs them itself. They share nothing but Redis and
the data directory.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from denoised import options
from denoised.errors import CommandError

if TYPE_CHECKING:
    from config.settings import Settings


def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [8000]")] = None,
    fd: Annotated[int | None, typer.Option(hidden=True, help="Inherited listening socket.")] = None,
    data_dir: options.DataDir = None,
    model: options.Models = None,
    redis_url: options.RedisUrl = None,
    log_level: options.Verbosity = None,
    die_with: options.DieWith = None,
) -> None:
    """Run the HTTP API alone."""
    settings = _prepare(
        "api",
        die_with,
        host=host,
        port=port,
        data_dir=data_dir,
        models=tuple(model) if model else None,
        redis_url=redis_url,
        log_level=log_level,
    )
    import socket

    from denoised.exposure import check_exposure
    from server.app import create_app
    from server.runner import ApiServer

    check_exposure(settings)
    server = ApiServer(create_app(settings, options.discover_models(settings)), settings)
    server.run(sockets=None if fd is None else [socket.socket(fileno=fd)])
    if not server.started:
        raise typer.Exit(1)


def worker(
    data_dir: options.DataDir = None,
    model: options.Models = None,
    redis_url: options.RedisUrl = None,
    device: options.Device = None,
    dtype: options.DType = None,
    log_level: options.Verbosity = None,
    die_with: options.DieWith = None,
    tag: Annotated[str | None, typer.Option(hidden=True, help="Last part of its name.")] = None,
) -> None:
    """Run one worker alone: it loads the models and takes jobs from the queue."""
    settings = _prepare(
        "worker",
        die_with,
        data_dir=data_dir,
        models=tuple(model) if model else None,
        redis_url=redis_url,
        device=device,
        dtype=dtype,
        log_level=log_level,
    )
    from workers.process import run_worker

    status = run_worker(settings, options.discover_models(settings), tag=tag)
    # Everything is signed off. Taking torch and the interpreter apart would cost a second of the
    # grace for a drain, and change nothing.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def keeper(
    data_dir: options.DataDir = None,
    redis_url: options.RedisUrl = None,
    log_level: options.Verbosity = None,
    die_with: options.DieWith = None,
) -> None:
    """Run the keeper alone: it returns lost jobs to the queue and removes what has expired."""
    settings = _prepare(
        "keeper", die_with, data_dir=data_dir, redis_url=redis_url, log_level=log_level
    )
    import threading

    from jobs.blobs import FileBlobStore
    from jobs.connections import connect
    from jobs.keeper import Keeper

    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda _signum, _frame: stop.set())
    assert settings.redis_url is not None
    with connect(settings.redis_url) as redis:
        Keeper(redis, settings, FileBlobStore(settings.blob_dir)).run(stop)


def _prepare(process: str, die_with: int | None, **flags: object) -> Settings:
    # A supervised process cannot do anything useful once its supervisor, and with it an embedded
    # Redis, is gone; leases make an abrupt end safe.
    options.die_with_parent(die_with, signal.SIGKILL)
    settings = options.load_settings(**flags)
    from denoised.logs import configure_logging

    configure_logging(process, settings.log_level)
    if settings.redis_url is None:
        raise CommandError(
            f"denoised {process} needs a Redis: give --redis-url or DENOISED_REDIS_URL, "
            "or use denoised serve, which starts one",
            exit_code=2,
        )
    return settings
