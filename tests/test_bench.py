"""The benchmark harness and the GPU check, as far as they run without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import bench.run
from bench import gpu_check
from bench.machine import host_kind

HERE = bench.run.FOLDER.parent


def test_every_module_with_a_run_function_is_a_benchmark():
    names = bench.run.benchmark_names()
    assert "serving" in names
    assert not {"run", "machine", "gpu_check"} & set(names)


def test_figures_become_aligned_tables():
    figures = {
        "ratio": 0.123456,
        "step": {"ours": 1.0, "diffusers": 2.0},
        "sizes": [{"px": 512, "ms": 3.25}, {"px": 1024, "ms": 13.0}],
    }
    assert bench.run.table(figures).splitlines() == [
        "  ratio  0.1235",
        "  step",
        "    ours       1",
        "    diffusers  2",
        "  sizes",
        "      px    ms",
        "     512  3.25",
        "    1024    13",
    ]


def test_results_of_one_day_and_machine_are_kept_together(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.run, "RESULTS", tmp_path / "results")
    bench.run.write_results({"a": {"figures": {"x": 1}}})
    path = bench.run.write_results({"b": {"figures": {"y": 2}}})
    document = json.loads(path.read_text())
    assert set(document["benchmarks"]) == {"a", "b"}
    assert document["machine"]["versions"]["torch"] == torch.__version__


def test_a_benchmark_that_fails_is_reported_and_the_others_go_on(monkeypatch, capfd):
    entry = bench.run.run_module("no_such_module")
    assert entry["failed"] == "exit status 1"
    assert entry["figures"] is None
    assert "no_such_module" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("machine", "kind"),
    [
        ({"gpus": ["NVIDIA H200"], "cores": 16}, "nvidia-h200"),
        ({"gpus": [], "cores": 2}, "cpu-2x-"),
    ],
)
def test_a_result_file_tells_what_kind_of_machine_it_is_from(machine, kind):
    assert host_kind(machine).startswith(kind)


def test_the_gpu_check_computes_the_same_network_twice():
    device = torch.device("cpu")
    shape = gpu_check.SMALL | {"num_layers": 1}
    assert gpu_check.check_float32(device, shape)["ok"]


def test_the_gpu_check_pairs_our_step_with_the_reference(monkeypatch):
    monkeypatch.setattr(gpu_check, "ROUNDS", 1)
    shape = gpu_check.SMALL | {"num_layers": 1}
    figures = gpu_check.check_bfloat16(torch.device("cpu"), 4, shape)
    assert figures["size_px"] == 128
    assert 0 < figures["ours_error"] < 0.1
    assert figures["time_ratio"] == figures["ours_ms"] / figures["diffusers_ms"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there to be checked")
def test_without_a_gpu_the_check_says_so_in_one_line():
    result = subprocess.run(
        [sys.executable, "-m", "bench.gpu_check"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr == "gpu-check: torch finds no CUDA device on this machine\n"
