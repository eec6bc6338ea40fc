"""The supervised Redis: back on its files at once, and never given up while others are served."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from denoised.own_redis import OwnRedis
from jobs.connections import connect


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[OwnRedis]:
    with OwnRedis(tmp_path / "redis") as running:
        assert running.wait_until_ready(lambda: False)
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
    assert redis.wait_until_ready(lambda: False)
    with connect(redis.url) as client:
        assert client.lrange("list", 0, -1) == [b"accepted"]


def failing(code: int) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


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

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(subprocess, "Popen", failing(errno.ENOMEM))
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


def test_a_disk_too_full_for_its_process_id_keeps_it_from_nothing(
    redis: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(redis)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(os, "pwrite", failing(errno.ENOSPC))
        redis.revive(1000.0)
    assert redis.restart_at is None
    assert_nothing_is_lost(redis)


def test_it_is_brought_back_as_the_same_program(
    redis: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An older one may not read what a newer one has written."""
    other = tmp_path / "valkey-server"
    other.write_text("#!/bin/sh\necho 'server v=9.9.9'\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    kill(redis)
    redis.revive(1000.0)
    assert_nothing_is_lost(redis)


def test_one_that_ends_as_soon_as_it_is_started_is_started_less_and_less_often(
    redis: OwnRedis, tmp_path: Path
) -> None:
    kill(redis)
    sound = redis._server.program
    broken = tmp_path / "broken-server"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    redis._server.program = broken
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
    redis._server.program = sound
    # One that has lived for a minute counts as sound again.
    redis.revive(now + 100.0)
    assert redis.restart_at is None
    assert_nothing_is_lost(redis)
