"""Finding a server for a command, or starting a private one for as long as the command runs.

In order: the URL that was given, the server that holds the data directory, whatever answers as a
denoised server at the default address unless the command named a data directory, a private server
on a free port with that directory. Where a server holds it and the model is a folder or file that
this one does not offer, the private server has a directory of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from denoised import instance
from denoised.client import Client, ClientError
from denoised.errors import CommandError
from denoised.options import check_path, discover_models

if TYPE_CHECKING:
    from config.settings import Settings

Report = Callable[[str], None]

PROBE_SECONDS = 2.0
POLL_SECONDS = 0.2
START_SECONDS = 60.0
LOAD_SECONDS = 900.0
WORKER_SECONDS = 120.0
STOP_SECONDS = 40.0


@dataclass(frozen=True)
class Connection:
    """A client of the server found, and the id under which that server offers the model."""

    client: Client
    model_id: str


def find_url(url: str | None, settings: Settings) -> str:
    """The given URL, or that of the server on this data directory, or the default address."""
    if url is not None:
        return url
    owner = instance.find(settings.data_dir.expanduser().absolute())
    return owner.url if owner else f"http://{settings.host}:{settings.port}"


@contextlib.contextmanager
def connect(
    url: str | None,
    model: str,
    settings: Settings,
    report: Report,
    *,
    also: Sequence[str] = (),
    only_data_dir: bool = False,
) -> Iterator[Connection]:
    """A connection to a server that offers `model`, and the models `also`, too.

    With `only_data_dir` a server at the default address that keeps its queue elsewhere is left
    alone, for whoever named a directory wants the results there.
    `report` receives short lines about what is being waited for. Raises CommandError or
    ClientError.
    """
    models = (model, *also)
    data_dir = settings.data_dir.expanduser().absolute()
    if url is not None or instance.find(data_dir):
        with Client(find_url(url, settings)) as client:
            offered = [entry.id for entry in client.models().data]
            ids = {name: id_among(offered, name) for name in models}
            lacking = [name for name, id in ids.items() if id is None]
            for name in lacking:
                check_path(name)
                if url is not None or not _is_path(name):
                    raise CommandError(
                        f"the server at {client.url} does not offer {name!r}, "
                        f"but {', '.join(offered)}",
                        exit_code=2,
                    )
            if not lacking:
                yield Connection(client, ids[model] or model)
                return
        report(f"the server at {client.url} does not offer {lacking[0]}")
        with (
            _directory_of_its_own(data_dir) as own,
            _private_server(models, settings, own, report) as connection,
        ):
            yield connection
    elif not only_data_dir and _offers(find_url(None, settings), models):
        with Client(find_url(None, settings)) as client:
            yield Connection(client, model)
    else:
        with _private_server(models, settings, data_dir, report) as connection:
            yield connection


def id_among(offered: Collection[str], model: str) -> str | None:
    """`model` itself if it is offered, else the offered id that its folder or file has, or None."""
    if model in offered:
        return model
    path = Path(model).expanduser().resolve()
    path_id = (path.name if path.is_dir() else path.stem).lower()
    return path_id if path_id in offered and path.exists() else None


def _is_path(model: str) -> bool:
    return Path(model).expanduser().exists()


@contextlib.contextmanager
def _directory_of_its_own(data_dir: Path) -> Iterator[Path]:
    """A new folder inside `data_dir`, which stays if the command fails: errors name its log."""
    try:
        own = Path(tempfile.mkdtemp(prefix="private-", dir=data_dir))
    except OSError as error:
        raise CommandError(f"cannot use the data directory {data_dir}: {error.strerror}") from None
    failed = False
    try:
        yield own
    except Exception:
        failed = True
        raise
    finally:
        if not failed:
            shutil.rmtree(own, ignore_errors=True)


def _offers(url: str, models: Sequence[str]) -> bool:
    with Client(url, timeout=PROBE_SECONDS) as client:
        try:
            return {entry.id for entry in client.models().data}.issuperset(models)
        except ClientError:
            return False


@contextlib.contextmanager
def _private_server(
    models: Sequence[str], settings: Settings, data_dir: Path, report: Report
) -> Iterator[Connection]:
    specs = discover_models(settings.model_copy(update={"models": tuple(models)}))
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        log_path = data_dir / "private-server.log"
        log_file = log_path.open("wb")
    except OSError as error:
        raise CommandError(f"cannot use the data directory {data_dir}: {error.strerror}") from None
    with log_file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "denoised", "serve"),
                *("--host", "127.0.0.1", "--port", "0"),
                *("--data-dir", str(data_dir)),
                *(part for model in models for part in ("--model", model)),
                *("--die-with", str(os.getpid())),
            ],
            env=_environment(data_dir, settings),
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the command, which stops the server when it has cancelled its job.
            start_new_session=True,
        )
    try:
        report("starting a private server")
        with Client(_await_start(process, data_dir, log_path)) as client:
            for spec in specs:
                report(f"loading {spec.id}")
                _await_model(client, spec.id, process, log_path)
            yield Connection(client, specs[0].id)
    finally:
        _stop(process)


def _environment(data_dir: Path, settings: Settings) -> dict[str, str]:
    """This process's, but a directory of its own has a queue of its own, which knows no keys."""
    if data_dir == settings.data_dir.expanduser().absolute():
        return dict(os.environ)
    shared = ("DENOISED_REDIS_URL", "DENOISED_REQUIRE_KEYS")
    return {name: value for name, value in os.environ.items() if name not in shared}


def _await_start(process: subprocess.Popen[bytes], data_dir: Path, log_path: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        _check_alive(process, log_path)
        owner = instance.find(data_dir)
        if owner and owner.pid == process.pid:
            return owner.url
        time.sleep(POLL_SECONDS)
    raise CommandError(f"the private server did not start; its log is {log_path}")


def _await_model(
    client: Client, model_id: str, process: subprocess.Popen[bytes], log_path: Path
) -> None:
    started = last_worker = time.monotonic()
    while (now := time.monotonic()) - started < LOAD_SECONDS:
        _check_alive(process, log_path)
        # Asked before the model, so that a worker that comes up in between is not taken for one
        # that has given up.
        if client.readiness().workers:
            last_worker = now
            residency = client.model(model_id).residency
            if residency.state in ("resident", "on_demand"):
                return
            if residency.state == "unavailable":
                raise CommandError(f"{model_id} cannot be loaded: {residency.error}")
        elif now - last_worker > WORKER_SECONDS:
            break
        time.sleep(POLL_SECONDS)
    raise CommandError(f"no worker has loaded {model_id}; the server's log is {log_path}")


def _check_alive(process: subprocess.Popen[bytes], log_path: Path) -> None:
    if process.poll() is not None:
        lines = log_path.read_text(errors="replace").strip().splitlines()
        reason = lines[-1].removeprefix("denoised: ") if lines else "it left no message"
        raise CommandError(f"the private server ended: {reason} (log: {log_path})")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
