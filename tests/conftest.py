"""Fixtures over a real Redis: one server for the session, an empty database for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from config.settings import Settings
from jobs.connections import connect
from jobs.embedded_redis import EmbeddedRedis

MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A real server on a unix socket, ended with the session."""
    with EmbeddedRedis.start(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_client(redis_server: EmbeddedRedis) -> Iterator[Redis]:
    """A blocking client of the session's server, which is emptied first."""
    with connect(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def make_settings(redis_server: EmbeddedRedis, redis_client: Redis, tmp_path: Path) -> MakeSettings:
    """Settings over the emptied server with a short lease; keyword arguments override."""

    def make(**changes: Any) -> Settings:
        defaults: dict[str, Any] = {
            "redis_url": redis_server.url,
            "data_dir": tmp_path,
            "lease_seconds": 2.0,
            "heartbeat_seconds": 0.5,
            "reap_seconds": 0.1,
        }
        return Settings(**(defaults | changes))

    return make


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    """Settings over the emptied server: lease 2 s, heartbeat 0.5 s."""
    return make_settings()
