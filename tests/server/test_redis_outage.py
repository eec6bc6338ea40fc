"""Redis going away and coming back under a running server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_harness import BODY, Api, FakeWorker, serving, until

from config.settings import Settings
from jobs.embedded_redis import EmbeddedRedis


class Restartable:
    """A Redis of the test's own that can be stopped and started again on its data."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server = EmbeddedRedis.start(directory)
        self.url = self._server.url

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server = EmbeddedRedis.start(self._directory)
        assert self._server.url == self.url


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Restartable]:
    """A Redis that only this test uses."""
    server = Restartable(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def own_api(own_redis: Restartable, tmp_path: Path) -> Iterator[Api]:
    """A server over it."""
    settings = Settings(redis_url=own_redis.url, data_dir=tmp_path, lease_seconds=30.0)
    with serving(settings) as api:
        yield api


def test_submissions_are_refused_while_redis_is_away_and_accepted_afterwards(
    own_api: Api, own_redis: Restartable
) -> None:
    before = own_api.submit()
    own_redis.stop()
    refused = own_api.client.post("/v1/jobs", json=BODY)
    assert refused.status_code == 503
    assert refused.json()["code"] == "store_unavailable"
    assert int(refused.headers["Retry-After"]) >= 1
    assert own_api.client.get("/healthz").status_code == 200
    own_redis.start()
    after = own_api.submit()
    listed = own_api.client.get("/v1/jobs").json()["data"]
    assert [job["id"] for job in listed] == [after["id"], before["id"]]


def test_an_open_stream_goes_on_after_redis_came_back(own_api: Api, own_redis: Restartable) -> None:
    job_id = own_api.submit()["id"]
    seen: list[str] = []

    def follow() -> None:
        url = f"/v1/jobs/{job_id}/events"
        with own_api.client.stream("GET", url, timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith("event"):
                    seen.append(line)

    watcher = threading.Thread(target=follow)
    watcher.start()
    # Before its first event a stream that loses Redis is refused, not continued.
    until(lambda: seen, "the stream to begin")
    own_redis.stop()
    own_redis.start()
    worker = FakeWorker(own_api.settings)
    worker.run_one()
    watcher.join()
    worker.leases.close()
    kinds = [line.removeprefix("event: ") for line in seen]
    assert kinds == ["job.queued", "job.started", *["job.progress"] * 4, "job.succeeded"]


def test_a_wait_in_which_redis_goes_away_still_tells_that_the_job_is_queued(
    own_api: Api, own_redis: Restartable
) -> None:
    answers: list[Any] = []

    def submit() -> None:
        answers.append(
            own_api.client.post("/v1/jobs", json=BODY, headers={"Prefer": "wait=2"}, timeout=60)
        )

    waiter = threading.Thread(target=submit)
    waiter.start()
    until(lambda: own_api.watchers == 1, "the wait to begin")
    own_redis.stop()
    waiter.join()
    assert answers[0].status_code == 202
    own_redis.start()
    assert own_api.job(answers[0].json()["id"])["status"] == "queued"
