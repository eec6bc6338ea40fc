"""One server per data directory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from denoised import instance
from denoised.errors import CommandError


def test_a_held_directory_tells_who_holds_it(tmp_path):
    with instance.hold(tmp_path, "http://127.0.0.1:1"):
        assert instance.find(tmp_path) == instance.Instance(os.getpid(), "http://127.0.0.1:1")
    assert instance.find(tmp_path) is None


def test_a_refusal_names_both_ways_to_choose_another_directory(tmp_path):
    told = str(instance.already_running(tmp_path, None))
    assert "--data-dir" in told
    assert "DENOISED_DATA_DIR" in told


def test_a_second_holder_is_refused_by_name(tmp_path):
    with (
        instance.hold(tmp_path, "http://127.0.0.1:1"),
        pytest.raises(CommandError, match=rf"already running \(process {os.getpid()}, http://"),
        instance.hold(tmp_path, "http://127.0.0.1:2"),
    ):
        pass


def test_a_killed_holder_leaves_the_directory_free(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from denoised import instance\n"
        "with instance.hold(Path(sys.argv[1]), 'http://x'): print('held', flush=True)"
        "; time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert instance.find(tmp_path) == instance.Instance(process.pid, "http://x")
        process.kill()
    assert instance.find(tmp_path) is None
    with instance.hold(tmp_path, "http://127.0.0.1:1"):
        pass


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with (
        pytest.raises(CommandError, match=r"cannot use the data directory .*file/data"),
        instance.hold(blocker / "data", "http://x"),
    ):
        pass
