"""What the next load takes is told by the earlier ones, also those of earlier workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from switching_harness import LOAD_SECONDS, Scene

from jobs.types import ModelLoad
from workers.load_speeds import LoadSpeeds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "load_speeds.json"


def test_seconds_follow_the_bytes_and_the_newest_load_counts_half(path: Path) -> None:
    speeds = LoadSpeeds(path, "cpu")
    assert speeds.seconds(100) is None
    speeds.observe(100, 2.0)
    assert speeds.seconds(500) == 10.0
    speeds.observe(300, 2.0)
    assert speeds.seconds(500) == 5.0


def test_a_speed_holds_for_its_device_and_over_a_restart(path: Path) -> None:
    LoadSpeeds(path, "NVIDIA H100").observe(100, 1.0)
    LoadSpeeds(path, "NVIDIA L4").observe(100, 4.0)
    assert LoadSpeeds(path, "NVIDIA H100").seconds(100) == 1.0
    assert LoadSpeeds(path, "NVIDIA L4").seconds(100) == 4.0
    assert LoadSpeeds(path, "cpu").seconds(100) is None


def test_a_load_of_nothing_or_in_no_time_tells_nothing(path: Path) -> None:
    speeds = LoadSpeeds(path, "cpu")
    speeds.observe(0, 1.0)
    speeds.observe(100, 0.0)
    assert speeds.seconds(100) is None
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"cpu": "fast"}', '{"cpu": 0}', '{"cpu": NaN}'])
def test_a_damaged_file_is_started_afresh(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    speeds = LoadSpeeds(path, "cpu")
    assert speeds.seconds(100) is None
    speeds.observe(100, 1.0)
    assert LoadSpeeds(path, "cpu").seconds(100) == 1.0


def test_a_file_that_cannot_be_written_costs_only_the_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    speeds = LoadSpeeds(tmp_path / "file" / "load_speeds.json", "cpu")
    speeds.observe(100, 1.0)
    assert speeds.seconds(100) == 1.0


def test_the_first_load_of_a_worker_is_told_by_those_of_the_last_one(tmp_path: Path) -> None:
    Scene(tmp_path)
    again = Scene(tmp_path)
    assert again.residents.expected("a") == ModelLoad(bytes=100, eta_seconds=LOAD_SECONDS)
