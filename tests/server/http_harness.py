"""A real API server in a thread, and a worker that pretends: what the tests of `server/` share."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2

from config.model_spec import FloatParameter, IntParameter, ModelSpec
from config.settings import Settings
from jobs.blobs import FileBlobStore, variant_key
from jobs.lease import LeaseClient
from jobs.types import (
    ClaimedJob,
    ErrorCode,
    JobFailure,
    Outcome,
    Output,
    Progress,
    Stage,
    Status,
    Usage,
    Verdict,
)
from jobs.worker_registry import WorkerInfo
from server.app import create_app
from server.runner import ApiServer
from server.services import Services

SPEC = ModelSpec(
    id="test-model",
    family="sana",
    description="Draws nothing.",
    width=IntParameter(default=64, minimum=32, maximum=128, multiple_of=32),
    height=IntParameter(default=64, minimum=32, maximum=128, multiple_of=32),
    num_inference_steps=IntParameter(default=4, minimum=1, maximum=50),
    guidance_scale=FloatParameter(default=4.5, minimum=1.0, maximum=20.0),
    num_images=IntParameter(default=1, minimum=1, maximum=4),
    samplers=("dpmpp", "euler"),
    max_prompt_chars=1000,
    source=Path("/nowhere/secret-folder"),
)
OTHER_SPEC = SPEC.model_copy(update={"id": "other-model", "description": "Nor does this one."})
BODY: dict[str, Any] = {"model": SPEC.id, "input": {"prompt": "a red circle"}}
THUMBNAIL = b"not really a jpeg"
PATIENCE = 10.0
"""Seconds after which a test that waits for something gives up."""


def until(condition: Callable[[], Any], what: str) -> Any:
    """Polls until the condition is truthy and returns its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)
    return value


@dataclass(frozen=True)
class Api:
    """A running server and a client to it."""

    url: str
    client: httpx2.Client
    server: ApiServer
    settings: Settings

    def submit(self, **changes: Any) -> dict[str, Any]:
        response = self.client.post("/v1/jobs", json=BODY | changes)
        assert response.status_code == 202, response.text
        return response.json()

    @property
    def watchers(self) -> int:
        """How many streams and waits follow a job in this server."""
        return int(self.services.hub.watchers)

    @property
    def services(self) -> Services:
        """What its routes work with."""
        found: Services = self.server.config.app.state.services  # type: ignore[union-attr]
        return found

    def job(self, job_id: str) -> dict[str, Any]:
        response = self.client.get(f"/v1/jobs/{job_id}")
        assert response.status_code == 200, response.text
        return response.json()


@contextmanager
def serving(settings: Settings, specs: Sequence[ModelSpec] = (SPEC, OTHER_SPEC)) -> Iterator[Api]:
    """The application under uvicorn on a free port, in a thread of this process."""
    settings = settings.model_copy(update={"host": "127.0.0.1", "port": 0})
    server = ApiServer(create_app(settings, specs), settings)
    thread = threading.Thread(target=server.run, name="api")
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), "the server's start")
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
            yield Api(url, client, server, settings)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server did not stop"


class FakeWorker:
    """Claims jobs by the real lease protocol and lets the test say what happens to them."""

    def __init__(self, settings: Settings) -> None:
        assert settings.redis_url is not None
        self.leases = LeaseClient(settings.redis_url, settings, "test-worker")
        self.blobs = FileBlobStore(settings.blob_dir)

    def claim(self) -> ClaimedJob:
        jobs = until(lambda: self.leases.claim([SPEC.id, OTHER_SPEC.id], 1), "a job to claim")
        return jobs[0]

    def step(self, job: ClaimedJob, step: int, *, preview: bytes | None = None) -> Verdict:
        total = job.input["num_inference_steps"]
        [verdict] = self.leases.report(
            [Progress(job, Stage.DENOISING, step, total, eta_seconds=1.5, preview=preview)]
        )
        return verdict

    def succeed(self, job: ClaimedJob, content: bytes = b"not really a png") -> None:
        outputs = []
        for n in range(job.input["num_images"]):
            key = f"jobs/{job.id}/{job.execution_id}/{n}.png"
            self.blobs.put(key, content)
            self.blobs.put(variant_key(key, "thumbnail"), THUMBNAIL)
            outputs.append(
                Output(
                    key=key,
                    content_type="image/png",
                    width=64,
                    height=64,
                    bytes=len(content),
                    sha256=hashlib.sha256(content).hexdigest(),
                    seed=job.input["seed"] + n,
                    variants=("thumbnail",),
                )
            )
        usage = Usage(gpu_seconds=0.5, steps=job.input["num_inference_steps"])
        assert self.leases.finish(
            job, Outcome(Status.SUCCEEDED, outputs=tuple(outputs), usage=usage)
        )

    def fail(self, job: ClaimedJob) -> None:
        failure = JobFailure(code=ErrorCode.OUT_OF_MEMORY, message="too large for this device")
        assert self.leases.finish(job, Outcome(Status.FAILED, failure=failure))

    def acknowledge_cancel(self, job: ClaimedJob) -> None:
        failure = JobFailure(code=ErrorCode.CANCELLED, message="cancelled")
        assert self.leases.finish(job, Outcome(Status.CANCELLED, failure=failure))

    def run_one(self, content: bytes = b"not really a png") -> ClaimedJob:
        """Takes the next job through all its steps to success."""
        job = self.claim()
        for step in range(1, job.input["num_inference_steps"] + 1):
            assert self.step(job, step) is Verdict.CONTINUE
        self.succeed(job, content)
        return job


def worker_info(**changes: Any) -> WorkerInfo:
    """An idle worker that holds `test-model`."""
    fields: dict[str, Any] = {
        "name": "test-worker",
        "pid": 1,
        "host": "here",
        "device": "cpu",
        "dtype": "float32",
        "models": (SPEC.id,),
        "model_errors": {},
        "state": "idle",
        "last_progress_at": datetime.now(UTC),
        "memory_bytes": 0,
    }
    return WorkerInfo(**fields | changes)


@dataclass(frozen=True)
class WireEvent:
    """One event as it came over the wire."""

    id: str
    type: str
    data: dict[str, Any]
