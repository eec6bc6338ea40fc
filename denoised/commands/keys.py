"""`denoised keys`: making, listing and revoking API keys.

Works on the Redis itself, so whoever can reach that can make keys: the one given, else the embedded
one of the data directory, which is started for the moment if no server runs there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from denoised import options
from denoised.errors import CommandError

if TYPE_CHECKING:
    from jobs.api_keys import ApiKey, KeyStore

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

MAX_NAME_CHARS = 64


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for the list.")],
    max_queued: Annotated[
        int | None, typer.Option(min=1, help="Jobs that may wait. [no limit]")
    ] = None,
    max_running: Annotated[
        int | None, typer.Option(min=1, help="Jobs that may run at a time; others wait. [no limit]")
    ] = None,
    jobs_per_day: Annotated[
        int | None, typer.Option(min=1, help="Jobs accepted in a day (UTC). [no limit]")
    ] = None,
    gpu_seconds_per_day: Annotated[
        float | None, typer.Option(min=0.001, help="Device time in a day (UTC). [no limit]")
    ] = None,
    redis_url: options.RedisUrl = None,
    data_dir: options.DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a key and print it, this once; from the first key on, the server asks for one."""
    from jobs.api_keys import Quotas

    if not (name.isprintable() and 0 < len(name) <= MAX_NAME_CHARS):
        raise CommandError(
            f"NAME: must be 1 to {MAX_NAME_CHARS} printable characters (got {name!r})", exit_code=2
        )
    quotas = Quotas(
        max_queued=max_queued,
        max_running=max_running,
        jobs_per_day=jobs_per_day,
        gpu_seconds_per_day=gpu_seconds_per_day,
    )
    with _key_store(redis_url, data_dir) as store:
        key, token = store.create(name, quotas)
    if as_json:
        typer.echo(json.dumps(key.model_dump(mode="json") | {"key": token}, indent=2))
        return
    typer.echo(token)
    typer.echo(f"key {key.id} ({name}) is made; it is shown this once, so keep it now", err=True)


@app.command("list")
def list_keys(
    redis_url: options.RedisUrl = None,
    data_dir: options.DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the keys that are good, oldest first."""
    found: list[ApiKey] = []
    if _may_hold_keys(redis_url, data_dir):
        with _key_store(redis_url, data_dir) as store:
            found = store.all()
    if as_json:
        typer.echo(json.dumps([key.model_dump(mode="json") for key in found], indent=2))
        return
    if not found:
        typer.echo("no keys")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "name", "created", "quotas", box=None)
    for key in found:
        table.add_row(
            key.id, key.name, f"{key.created_at.astimezone():%Y-%m-%d %H:%M}", _quotas(key)
        )
    Console().print(table, markup=False)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key, see `denoised keys list`.")],
    redis_url: options.RedisUrl = None,
    data_dir: options.DataDir = None,
) -> None:
    """Refuse a key from now on; jobs accepted from it still run."""
    from jobs.errors import ApiKeyNotFound

    if not _may_hold_keys(redis_url, data_dir):
        raise CommandError(str(ApiKeyNotFound(key_id)))
    with _key_store(redis_url, data_dir) as store:
        try:
            store.revoke(key_id)
        except ApiKeyNotFound as error:
            raise CommandError(str(error)) from None
    typer.echo(f"key {key_id} is revoked")


def _quotas(key: ApiKey) -> str:
    quotas = key.quotas.model_dump(exclude_none=True)
    return ", ".join(f"{name} {value:g}" for name, value in quotas.items()) or "none"


def _may_hold_keys(redis_url: str | None, data_dir: Path | None) -> bool:
    """Whether there is anything to look into: reading must not make a data directory."""
    settings = options.load_settings(redis_url=redis_url, data_dir=data_dir)
    folder = settings.data_dir.expanduser()
    redis_dir = settings.model_copy(update={"data_dir": folder}).redis_dir
    return settings.redis_url is not None or redis_dir.exists()


@contextlib.contextmanager
def _key_store(redis_url: str | None, data_dir: Path | None) -> Iterator[KeyStore]:
    from denoised import instance
    from jobs.api_keys import KeyStore
    from jobs.connections import connect
    from jobs.embedded_redis import EmbeddedRedis, RedisUnavailable, url_at
    from jobs.errors import StoreUnavailable

    settings = options.load_settings(redis_url=redis_url, data_dir=data_dir)
    folder = settings.data_dir.expanduser().absolute()
    redis_dir = settings.model_copy(update={"data_dir": folder}).redis_dir
    url = settings.redis_url
    with contextlib.ExitStack() as stack:
        try:
            if url is None and instance.find(folder):
                url = url_at(redis_dir)
            if url is None:
                url = stack.enter_context(EmbeddedRedis.start(redis_dir)).url
            yield KeyStore(stack.enter_context(connect(url)))
        except (RedisUnavailable, StoreUnavailable) as error:
            raise CommandError(str(error)) from None
