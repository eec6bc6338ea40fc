"""The API as a process of its own: what it imports, and how it ends on SIGTERM."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx2
import pytest
from http_harness import BODY, PATIENCE

from config.settings import Settings

SCRIPT = """
import sys
from pathlib import Path
from config.settings import Settings
from config.model_spec import ModelSpec
from server.app import create_app
from server.runner import ApiServer

settings = Settings.model_validate_json(sys.argv[1])
spec = ModelSpec.model_validate_json(sys.argv[2])
server = ApiServer(create_app(settings, (spec,)), settings)

async def startup(sockets=None, begin=server.startup):
    await begin(sockets)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)

server.startup = startup
server.run()
print("stopped", flush=True)
"""


@pytest.fixture
def process(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """`server.runner` in a process; its first line of output is the port."""
    from http_harness import SPEC

    own = settings.model_copy(update={"host": "127.0.0.1", "port": 0})
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, own.model_dump_json(), SPEC.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def test_sigterm_ends_the_process_at_once_although_streams_are_open(
    process: subprocess.Popen[str],
) -> None:
    assert process.stdout is not None
    url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
    with httpx2.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
        job_id = client.post("/v1/jobs", json=BODY).json()["id"]
        with client.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            lines = response.iter_lines()
            assert next(line for line in lines if line.startswith("event")) == "event: job.queued"
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
    assert rest[-2:] == [": the server is stopping, reconnect", ""]
    # The grace time of open requests is 10 s; this must not need it.
    assert process.wait(timeout=5) in (0, -signal.SIGTERM)


def test_the_api_imports_neither_torch_nor_models_nor_other_heavy_things() -> None:
    script = "import json, sys, server.runner; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    modules = {name.partition(".")[0] for name in json.loads(found.stdout)}
    heavy = {"torch", "numpy", "PIL", "transformers", "models", "workers", "denoised", "yaml"}
    assert not modules & heavy
