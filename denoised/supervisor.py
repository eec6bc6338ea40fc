"""One machine's server: an embedded Redis if none is given, the API, the keeper and the workers.

The supervisor starts the others as processes of this interpreter, hands them the settings by
environment, starts again what dies, and stops them in order: workers first, so that they can hand
their jobs back through the API and Redis that are still there. Of a worker that has ended it tells
the job layer at once. It holds the listening socket, so connections wait instead of failing while
the API restarts. It never loads a tensor library.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import structlog

from config.settings import Settings
from denoised import __version__, instance
from denoised.child import Child
from denoised.client import Client, ClientError
from denoised.errors import CommandError
from denoised.exposure import check_exposure
from denoised.gpus import visible_gpus
from denoised.own_redis import OwnRedis
from denoised.signals import SignalInbox
from jobs.worker_registry import worker_name

if TYPE_CHECKING:
    from denoised.dead_workers import DeadWorkers

log = structlog.get_logger(__name__)

BACKLOG = 2048
STOP_SECONDS = 15.0
# Failing this early, with an error status, means that it cannot run at all.
EARLY_SECONDS = 10.0


def serve(settings: Settings, model_ids: Sequence[str]) -> int:
    """Run everything until SIGTERM or SIGINT; returns the exit status.

    Raises CommandError, before anything but a Redis is started, when the data directory or the port
    is taken, no Redis can be had, or others could use the server without a key.
    """
    data_dir = settings.data_dir.expanduser().absolute()
    if owner := instance.find(data_dir):
        raise instance.already_running(data_dir, owner)
    with (
        SignalInbox() as inbox,
        _listen(settings.host, settings.port) as listener,
        instance.hold(data_dir, _url(listener)),
        contextlib.ExitStack() as stack,
    ):
        settings = settings.model_copy(update={"data_dir": data_dir})
        redis = None
        if settings.redis_url is None:
            redis = stack.enter_context(OwnRedis(settings.redis_dir))
            if not redis.wait_until_ready(lambda: inbox.stops > 0):
                return 0
            settings = settings.model_copy(update={"redis_url": redis.url})
        check_exposure(settings)
        return Supervisor(settings, model_ids, listener, inbox, redis).run()


class Supervisor:
    """The processes of one server and the loop that watches them."""

    def __init__(
        self,
        settings: Settings,
        model_ids: Sequence[str],
        listener: socket.socket,
        inbox: SignalInbox,
        redis: OwnRedis | None,
    ) -> None:
        self._settings = settings
        self._model_ids = list(model_ids)
        self._url = _url(listener)
        self._inbox = inbox
        self._redis = redis
        self._metrics_dir = settings.data_dir / "metrics"
        gpus = visible_gpus() if settings.device in ("auto", "cuda") else []
        self._place = "one GPU each" if gpus else settings.device
        count = settings.workers
        if gpus and "workers" not in settings.model_fields_set:
            count = len(gpus)
        env = self._environment(workers=count)
        self._tag = uuid.uuid4().hex[:6]
        self._keeper = Child("keeper", ["keeper"], env)
        self._api = Child(
            "api", ["api", "--fd", str(listener.fileno())], env, pass_fds=[listener.fileno()]
        )
        self._workers = [
            Child(f"worker-{n}", ["worker", "--tag", self._tag], _with_gpu(env, gpus, n))
            for n in range(count)
        ]
        self._dead_workers: DeadWorkers | None = None

    def run(self) -> int:
        """Start, watch until told to stop, stop in order. 0, or 1 if the server could not run."""
        shutil.rmtree(self._metrics_dir, ignore_errors=True)
        self._metrics_dir.mkdir(parents=True)
        started_at = time.monotonic()
        self._print_banner()
        children = [self._keeper, self._api, *self._workers]
        try:
            for child in children:
                child.start(started_at)
            self._dead_workers = self._start_telling()
            threading.Thread(target=self._announce_ready, daemon=True).start()
            return self._watch(children, started_at)
        finally:
            self._stop_all()

    def _watch(self, children: Sequence[Child], started_at: float) -> int:
        while not self._inbox.stops:
            now = time.monotonic()
            if self._redis is not None:
                self._redis.revive(now)
            for child in children:
                status = self._collect(child, now)
                if status is not None:
                    early = child.starts == 1 and now - started_at < EARLY_SECONDS
                    if status > 0 and early and child not in self._workers:
                        _say_error(f"{child.name} could not start (exit status {status})")
                        return 1
                    self._log_death(child, status, now)
                if child.restart_at is not None and child.restart_at <= now:
                    child.start(now)
            due = [child.restart_at for child in children if child.restart_at is not None]
            if self._redis is not None and self._redis.restart_at is not None:
                due.append(self._redis.restart_at)
            self._inbox.wait(max(0.0, min(due) - now) if due else None)
        return 0

    def _start_telling(self) -> DeadWorkers:
        # Where a process counts its metrics is decided when it imports them.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self._metrics_dir)
        from denoised.dead_workers import DeadWorkers

        return DeadWorkers(self._settings)

    def _collect(self, child: Child, now: float) -> int | None:
        ended = child.collect(now)
        if ended is None:
            return None
        pid, status = ended
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid, str(self._metrics_dir))
        if child in self._workers and self._dead_workers is not None:
            self._dead_workers.report(worker_name(pid, self._tag))
        return status

    @staticmethod
    def _log_death(child: Child, status: int, now: float) -> None:
        reason = f"signal {-status}" if status < 0 else f"status {status}"
        pause = round((child.restart_at or now) - now, 1)
        log.warning(f"{child.name} ended ({reason}), starting it again", pause_seconds=pause)

    def _stop_all(self) -> None:
        print("stopping: workers finish or hand back their jobs", flush=True)
        drain = self._settings.drain_seconds + STOP_SECONDS
        self._stop(self._workers, drain)
        self._stop([self._api, self._keeper], STOP_SECONDS)
        print("stopped", flush=True)

    def _stop(self, children: Sequence[Child], patience: float) -> None:
        """SIGTERM, passing on every further stop signal, then SIGKILL after `patience` seconds."""
        deadline = time.monotonic() + patience
        told = -1
        while any(child.pid for child in children):
            now = time.monotonic()
            if now >= deadline:
                for child in children:
                    if child.pid:
                        log.warning(f"{child.name} does not stop, killing it")
                    child.send(signal.SIGKILL)
                deadline = now + STOP_SECONDS
            elif self._inbox.stops != told:
                told = self._inbox.stops
                for child in children:
                    child.send(signal.SIGTERM)
            self._inbox.wait(max(0.0, deadline - now))
            for child in children:
                self._collect(child, time.monotonic())

    def _environment(self, *, workers: int) -> dict[str, str]:
        """This process's environment with the settings in it, as the children read them."""
        env = dict(os.environ)
        env["PROMETHEUS_MULTIPROC_DIR"] = str(self._metrics_dir)
        values = self._settings.model_copy(update={"workers": workers}).model_dump(mode="json")
        for name, value in values.items():
            if value is None:
                env.pop(f"DENOISED_{name.upper()}", None)
            else:
                text = ",".join(value) if isinstance(value, list) else str(value)
                env[f"DENOISED_{name.upper()}"] = text
        return env

    def _print_banner(self) -> None:
        print(f"denoised {__version__}")
        print(f"  url       {self._url}   (API docs: {self._url}/docs)")
        print(f"  metrics   {self._url}/metrics")
        print(f"  models    {', '.join(self._model_ids)}")
        print(f"  workers   {len(self._workers)} (device: {self._place})")
        print(f"  data      {self._settings.data_dir}", flush=True)

    def _announce_ready(self) -> None:
        with Client(self._url) as client:
            while not self._inbox.stops:
                with contextlib.suppress(ClientError):
                    if client.readiness().status == "ready":
                        print("ready (Ctrl-C stops the server)", flush=True)
                        return
                time.sleep(0.2)


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        # create_server appends the address to the text of some errors; the message has it already.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise CommandError(
            f"cannot listen on {host}:{port} ({reason}); choose another with --host or --port"
        ) from None
    with listener:
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _with_gpu(env: dict[str, str], gpus: Sequence[str], number: int) -> dict[str, str]:
    return env | {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else env


def _say_error(message: str) -> None:
    print(f"denoised: {message}", file=sys.stderr, flush=True)
