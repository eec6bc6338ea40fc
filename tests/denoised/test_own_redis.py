"""The supervised Redis: back on its files at once, and never given up while others are served."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from denoised.own_redis import OwnRedis
from jobs import embedded_redis
from jobs.connections import connect
from jobs.embedded_redis import RedisUnavailable


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[OwnRedis]:
    with OwnRedis(tmp_path / "redis") as running:
        with connect(running.url) as client:
            client.rpush("list", "accepted")
        yield running


def kill(redis: OwnRedis) -> None:
    with connect(redis.url) as client:
        client.execute_command("WAITAOF", 1, 0, 5000)
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGKILL)
    until_dead(redis)


def until_dead(redis: OwnRedis) -> None:
    deadline = time.monotonic() + 30
    while redis._server.alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_nothing_is_lost(redis: OwnRedis) -> None:
    redis._server._wait_until_ready()
    with connect(redis.url) as client:
        assert client.lrange("list", 0, -1) == [b"accepted"]


def test_while_it_lives_nothing_is_done(redis: OwnRedis) -> None:
    redis.revive(1000.0)
    assert redis.restart_at is None
    assert_nothing_is_lost(redis)


def test_it_is_back_at_once_on_its_files(redis: OwnRedis) -> None:
    kill(redis)
    redis.revive(1000.0)
    assert redis.restart_at is None
    assert_nothing_is_lost(redis)


def test_what_keeps_it_from_starting_for_a_while_ends_nothing(
    redis: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(redis)

    def no_disk() -> Path:
        raise RedisUnavailable("the disk is full")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(embedded_redis, "find_server", no_disk)
        pauses = []
        now = 1000.0
        for _ in range(4):
            redis.revive(now)
            assert redis.restart_at is not None
            pauses.append(redis.restart_at - now)
            now = redis.restart_at
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6])
    redis.revive(now - 0.1)
    assert not redis._server.alive, "not before its time"
    redis.revive(now)
    assert redis.restart_at is None
    assert_nothing_is_lost(redis)


def test_one_that_ends_as_soon_as_it_is_started_is_started_less_and_less_often(
    redis: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kill(redis)
    broken = tmp_path / "broken-server"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(embedded_redis, "find_server", lambda: broken)
        redis.revive(1000.0)
        pauses = []
        now = 1000.0
        for _ in range(3):
            until_dead(redis)
            redis.revive(now)
            assert redis.restart_at is not None
            pauses.append(redis.restart_at - now)
            now = redis.restart_at
            redis.revive(now)
    assert pauses == pytest.approx([0.2, 0.4, 0.8])
    until_dead(redis)
    # A minute of life later it counts as sound again.
    redis.revive(now + 100.0)
    redis.revive(now + 100.0)
    assert_nothing_is_lost(redis)
