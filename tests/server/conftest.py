"""Fixtures of the HTTP tests: one server over a real Redis, emptied for each test, and a worker."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from http_harness import Api, FakeWorker, serving, until
from redis import Redis

from config.settings import Settings
from jobs.embedded_redis import EmbeddedRedis
from tests.video_spec import VIDEO_SPEC


@pytest.fixture(scope="session")
def shared_api(
    redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Api]:
    """A server on a free port; starting one for each test would take most of the time."""
    settings = Settings(
        redis_url=redis_server.url,
        data_dir=tmp_path_factory.mktemp("data"),
        lease_seconds=30.0,
        models=("test-model",),
    )
    with serving(settings) as running:
        yield running


@pytest.fixture
def api(shared_api: Api, redis_client: Redis) -> Iterator[Api]:
    """The server, with nothing queued and nothing stored."""
    shutil.rmtree(shared_api.settings.blob_dir, ignore_errors=True)
    yield shared_api
    until(lambda: shared_api.watchers == 0, "watchers to leave")


@pytest.fixture
def settings(api: Api) -> Settings:
    """The settings of the server."""
    return api.settings


@pytest.fixture
def worker(settings: Settings) -> Iterator[FakeWorker]:
    """A worker that does what the test tells it."""
    fake = FakeWorker(settings)
    yield fake
    fake.leases.close()


@pytest.fixture(scope="session")
def shared_video_api(
    redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Api]:
    """A server of a model that takes files, with narrow limits on them."""
    settings = Settings(
        redis_url=redis_server.url,
        data_dir=tmp_path_factory.mktemp("data"),
        lease_seconds=30.0,
        models=(VIDEO_SPEC.id,),
        max_file_bytes=200_000,
        max_file_pixels=10_000,
        max_file_frames=40,
        max_file_total_pixels=200_000,
        max_file_duration_seconds=20,
        max_data_url_bytes=20_000,
        max_queued_jobs=3,
    )
    with serving(settings, (VIDEO_SPEC,)) as running:
        yield running


@pytest.fixture
def video_api(shared_video_api: Api, redis_client: Redis) -> Api:
    """The server of a model that takes files, with nothing queued and nothing stored."""
    shutil.rmtree(shared_video_api.settings.blob_dir, ignore_errors=True)
    return shared_video_api
