"""The benchmark harness and the GPU check, as far as they run without a GPU."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bench.run
from bench import (
    day,
    day_load,
    drain,
    fuzz_gguf,
    gguf_loading,
    goals,
    heartbeat,
    preemption,
    wan_gguf,
    wan_gguf_14b,
)
from bench.machine import host_kind
from bench.sdcpp import SdcppStep
from bench.synthetic_gguf import (
    TINY,
    VACE_1_3B,
    VACE_14B,
    planned_tensors,
    random_blocks,
    write_diffusers_config,
    write_random_model,
)
from bench.wan_steps import Clip
from config.settings import Settings
from models.weights.gguf.dequantize import dequantize
from models.weights.gguf.file import GgufFile
from models.weights.gguf.file_type import FileType
from models.weights.gguf.format import BLOCK, QuantType
from models.weights.gguf.writer import PlannedTensor

HERE = bench.run.FOLDER.parent


def test_every_module_with_a_run_function_is_a_benchmark():
    names = bench.run.benchmark_names()
    assert "serving" in names
    assert {"fuzz_gguf", "wan_gguf", "wan_gguf_14b"} <= set(names)
    assert not {"run", "machine", "gpu_check", "gpu_check_wan", "gguf_loading"} & set(names)


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


def test_a_property_that_does_not_hold_fails_a_benchmark_and_a_slow_machine_does_not(capsys):
    late, lost = goals.at_most("ms", 3.0, 2.0), goals.none("lost", 1)
    sound = [goals.at_least("ratio", 3.0, 2.0), goals.none("lost", 0), goals.holds("same", True)]
    assert bench.run.report({"figure": 1, "goals": [*sound, late]}) == 0
    assert bench.run.report({"figure": 1, "goals": [lost]}) == 1
    assert bench.run.report({"goals": [goals.holds("same", False)]}) == 1
    assert bench.run.report({"figure": 1}) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "  goal ms: 3 (at most 2): NOT met" in printed
    assert "  goal ratio: 3 (at least 2): met" in printed
    assert "  goal lost: 1 (must be 0): NOT met" in printed


def test_a_run_fails_with_a_property_and_keeps_the_figures(monkeypatch):
    figures = {"x": 1, "goals": [goals.none("lost", 1)]}
    kept = {}

    def only(command, **_):
        Path(command[-1]).write_text(json.dumps(figures))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bench.run.subprocess, "run", only)
    monkeypatch.setattr(bench.run, "write_results", lambda entries: kept.update(entries) or HERE)
    monkeypatch.setattr(sys, "argv", ["bench.run", "drain"])
    assert bench.run.main() == 1
    assert kept["drain"]["figures"] == figures
    assert kept["drain"]["failed"] == "does not hold: lost"
    figures["goals"] = [goals.at_most("ms", 2.0, 1.0)]
    assert bench.run.main() == 0


def drained(**spoiled):
    """What became of a job that was handed back once and lost nothing by it."""
    sound = {"is_lost": False, "handed_back": 1, "attempts_lost": 0, "restarts": 0}
    return drain._Outcome(**(sound | {"steps_again": 0} | spoiled))


@pytest.mark.parametrize(
    ("left", "outcome", "is_sound"),
    [
        ((0, 2.0), drained(), True),
        ((1, 2.0), drained(), False),
        ((0, 9.0), drained(), False),
        ((None, 60.0), drained(), False),
        ((0, 2.0), drained(handed_back=0), False),
        ((0, 2.0), drained(is_lost=True), False),
        ((0, 2.0), drained(attempts_lost=1), False),
        ((0, 2.0), drained(restarts=1), False),
        ((0, 2.0), drained(steps_again=3), False),
    ],
)
def test_a_drain_that_costs_anything_fails_its_benchmark(left, outcome, is_sound):
    found = drain._goals([left], [outcome], grace=8.0)
    assert (goals.broken({"goals": found}) == []) == is_sound


def test_a_load_that_keeps_pythons_lock_is_seen_to_hold_up_the_heartbeat():
    # A call through PyDLL keeps it.
    figures = heartbeat.measure(
        lambda: ctypes.PyDLL(None).usleep(200_000), Settings(heartbeat_seconds=0.01)
    )
    assert figures["held_up_seconds"] > 0.15
    assert [goal["must_hold"] for goal in figures["goals"]] == [False]


def test_the_heartbeat_is_measured_beside_the_load_of_a_whole_model():
    figures = heartbeat.run(TINY, processes=1)
    assert figures["load_seconds"] >= figures["longest_between_beats_seconds"] > 0


def test_waits_are_measured_while_a_clip_is_denoised():
    figures = preemption.run(clip_steps=8, pictures=2)
    assert {row["preemption"] for row in figures["wait"]} == {"on", "off"}
    assert all(row["pictures"] for row in figures["wait"] if row["preemption"] == "on")
    assert goals.broken(figures) == []


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


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_random_model(path, TINY, FileType.Q4_K_M)
    return path


@pytest.mark.parametrize("type", [type for type in QuantType if BLOCK[type][0] > 1])
def test_random_blocks_make_weights_of_the_size_of_trained_ones(type):
    tensor = PlannedTensor("blocks.0.ffn.0.weight", (64, 2048), type)
    data = random_blocks(tensor, np.random.default_rng(0))
    weights = dequantize(data.view(64, -1), type, dtype=torch.float32)
    # 131,072 draws: the factors are rough by a few percent, chance adds less.
    assert weights.std().item() == pytest.approx(0.02, rel=0.1)
    # Half a step of the coarsest type, whose levels are -8 to 7.
    assert abs(weights.mean().item()) < 0.003


def test_norms_of_a_random_model_are_near_one_and_the_rest_near_zero(tiny_file):
    with GgufFile.open(tiny_file) as file:
        norm = file.raw("blocks.0.norm3.weight").view(torch.float32)
        bias = file.raw("blocks.0.norm3.bias").view(torch.float32)
    assert abs(norm.mean().item() - 1) < 0.01
    assert abs(bias.mean().item()) < 0.01


@pytest.mark.parametrize(
    ("config", "file_type", "gigabytes", "parameters"),
    [
        # Sizes as published: 17.3 billion weights make 11.6 GB.
        (VACE_14B, FileType.Q4_K_M, 11.6, 17.34e9),
        (VACE_1_3B, FileType.Q8_0, 2.30, 2.15e9),
        (VACE_1_3B, FileType.Q4_K_M, 1.45, 2.15e9),
    ],
)
def test_full_size_plans_have_the_published_sizes(config, file_type, gigabytes, parameters):
    plan = planned_tensors(config, file_type)
    assert sum(tensor.elements for tensor in plan) == pytest.approx(parameters, rel=0.01)
    assert sum(tensor.nbytes for tensor in plan) / 1e9 == pytest.approx(gigabytes, rel=0.02)


@pytest.mark.parametrize("way", gguf_loading.WAYS)
def test_each_way_of_loading_is_measured(tiny_file, tmp_path, way):
    figures = gguf_loading.measure(way, tiny_file, write_diffusers_config(tmp_path, TINY))
    assert figures["way"] == way
    assert figures["seconds"] > 0
    assert figures["peak_of_file"] >= figures["growth_of_file"] >= 0


def test_loading_is_measured_in_a_process_of_its_own(tiny_file, tmp_path):
    own_peak = gguf_loading.peak_bytes() / 1e6
    figures = gguf_loading.measure_apart("open", tiny_file, tmp_path)
    assert 0 < figures["peak_mb"] < own_peak


DRIVER = """#!{python}
import sys, time
import numpy as np
model, inputs, output, *sizes = sys.argv[1:]
assert model.endswith("Q8_0.gguf") and sizes == ["2", "4", "4", "1"]
places = 2 * 4 * 4
values = np.fromfile(inputs, np.float32)
assert len(values) == (16 + 96) * places + 512 * {text_dim} + 1 and values[-1] == 700
print("|====>   | 1/2", flush=True)
print("done 0.25 0.2", flush=True)
for number, line in enumerate(sys.stdin, start=1):
    values[: 16 * places].tofile(output)
    print("done", 0.25 + 0.1 * number, 0.2 + 0.1 * number, flush=True)
"""


@pytest.fixture
def driver(tmp_path) -> Path:
    """Answers as the driver of stable-diffusion.cpp does; its velocity is the latents."""
    path = tmp_path / "driver"
    path.write_text(DRIVER.format(python=sys.executable, text_dim=TINY.text_dim))
    path.chmod(0o755)
    return path


def test_stepping_pairs_both_files_with_each_peer(monkeypatch, driver):
    monkeypatch.setattr(
        wan_gguf, "measure_apart", lambda way, path, config: {"way": way, "peak_of_file": 1.0}
    )
    figures = wan_gguf.run(1, config=TINY, latents=(2, 4, 4), sdcpp=driver)
    assert figures["tokens"] == 8
    assert [row["file"] for row in figures["files"]] == ["Q8_0", "Q4_K_M"]
    assert len(figures["loading"]) == 2 * len(gguf_loading.WAYS) + 1
    assert figures["loading"][-1]["seconds"] == 0.25
    pairs = {(row["ours"], row["peer"]): row for row in figures["against_peers"]}
    assert set(pairs) == {
        ("Q8_0 packed", "Q8_0 diffusers"),
        ("unpacked", "Q8_0 diffusers"),
        ("Q4_K_M packed", "Q4_K_M diffusers"),
        ("Q8_0 packed", "Q8_0 stable-diffusion.cpp"),
        ("unpacked", "Q8_0 stable-diffusion.cpp"),
    }
    for (_, peer), row in pairs.items():
        if peer.endswith("diffusers"):
            # Both may round to bfloat16, in places of their own.
            assert row["difference"] < 0.02
            assert row["ratio"] > 0
            assert row["cpu_ratio"] > 0


def test_a_driver_that_ends_early_is_an_error(tmp_path):
    clip = Clip(TINY, (1, 4, 4))
    with pytest.raises(RuntimeError, match="the driver ended with status 0"):
        SdcppStep(Path("/bin/true"), tmp_path / "none.gguf", clip, 1)


def test_the_large_model_loads_and_steps_in_a_process_of_its_own(tmp_path):
    figures = wan_gguf_14b.run(config=TINY, latents=(1, 4, 4), folder=tmp_path)
    assert figures["tokens"] == 4
    assert figures["tensors"] == len(planned_tensors(TINY, FileType.Q4_K_M))
    assert figures["step_seconds"] > 0
    assert figures["peak_mb"] >= figures["load_peak_mb"]
    assert list(tmp_path.iterdir()) == []


def test_the_large_model_is_skipped_where_the_disk_has_no_room(tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1_000_000_000})
    monkeypatch.setattr(wan_gguf_14b.shutil, "disk_usage", lambda path: usage)
    figures = wan_gguf_14b.run(folder=tmp_path)
    assert figures == {"skipped": "takes 11.6 GB of disk, 1.0 GB are free"}


def test_the_fuzzer_reports_what_it_saw():
    figures = fuzz_gguf.run(cases=50, seed=1)
    assert sum(figures["outcomes"].values()) == figures["cases"] == 50
    assert figures["seed"] == 1


def test_after_everything_has_expired_no_key_is_left(monkeypatch):
    monkeypatch.setattr(day_load, "KILLED", 0.05)
    figures = day.simulate(day.Plan(jobs=400, wall_seconds=2.0, lease_seconds=2.0, weighed=50))
    assert figures["leaked keys"] == []
    happened = figures["what happened"]
    assert happened["jobs"] == 400
    for what in ("killed", "put back by the keeper", "cancels", "succeeded", "watched jobs"):
        assert happened[what] > 0
    assert figures["bytes per waiting job"] > 0
    assert figures["MB after everything expired"] < figures["peak MB"]
