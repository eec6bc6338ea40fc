"""The check of a machine's GPU, on a CPU: what it compares, what it notices, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import (
    device_timing,
    gpu_check,
    gpu_check_wan,
)
from bench.synthetic_gguf import (
    TINY,
)
from models.wan.autoencoder_config import WanAutoencoderConfig
from models.weights.gguf.file_type import FileType


def test_the_gpu_check_computes_the_same_network_twice():
    device = torch.device("cpu")
    shape = gpu_check.SMALL | {"num_layers": 1}
    assert gpu_check.check_float32(device, shape)["ok"]


def test_the_gpu_check_pairs_our_step_with_the_reference(monkeypatch):
    monkeypatch.setattr(device_timing, "ROUNDS", 1)
    shape = gpu_check.SMALL | {"num_layers": 1}
    figures = gpu_check.check_bfloat16(torch.device("cpu"), 4, shape)
    assert figures["size_px"] == 128
    assert 0 < figures["ours_error"] < 0.1
    assert figures["time_ratio"] == figures["ours_ms"] / figures["diffusers_ms"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there to be checked")
def test_without_a_gpu_the_check_says_so_in_one_line():
    result = subprocess.run(
        [sys.executable, "-m", "bench.gpu_check"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr == "gpu-check: torch finds no CUDA device on this machine\n"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cpu(monkeypatch) -> torch.device:
    monkeypatch.setattr(device_timing, "ROUNDS", 1)
    return torch.device("cpu")


def test_the_gpu_check_compares_every_block_type(cpu):
    figures = gpu_check_wan.check_kernels(cpu, rows=16, columns=256)
    assert len(figures["types"]) == 12
    assert gpu_check.agrees(figures)


def test_the_gpu_check_sees_a_kernel_that_is_off(cpu, monkeypatch):
    correct = gpu_check_wan.PackedLinear.dequantized
    monkeypatch.setattr(
        gpu_check_wan.PackedLinear, "dequantized", lambda *a: correct(*a).mul_(1 + 1e-6)
    )
    assert not gpu_check.agrees(gpu_check_wan.check_kernels(cpu, rows=16, columns=256))


def test_the_gpu_check_compares_8_bit_products(cpu):
    assert gpu_check.agrees(gpu_check_wan.check_fp8(cpu, rows=32, columns=64))


def test_the_gpu_check_steps_every_residency_beside_diffusers(cpu):
    figures = gpu_check_wan.check_steps(cpu, TINY, FileType.Q4_K_M, {"short": ((1, 4, 4), 1)})
    rows = {row["variant"]: row for row in figures["steps"]}
    assert set(rows) == {"bf16", "packed", "fp8", "diffusers"}
    # The same numbers reach the same product.
    assert rows["packed"]["difference"] == 0
    assert 0 < rows["diffusers"]["difference"] < 0.02
    assert 0 < rows["fp8"]["difference"] < 0.2
    assert gpu_check.agrees(figures)


def test_the_gpu_check_times_attention_and_names_backends_that_refuse(cpu):
    rows = gpu_check_wan.time_attention(cpu, heads=1, lengths=(16,))["attention"]
    by_backend = {row["backend"]: row for row in rows}
    assert by_backend["default"]["ms"] > 0
    assert by_backend["CUDNN_ATTENTION"]["refused"]


def test_the_gpu_check_decodes_beside_diffusers(cpu):
    config = WanAutoencoderConfig(base_dim=8, dim_mult=(1, 1, 1, 1), num_res_blocks=1)
    figures = gpu_check_wan.check_autoencoder(cpu, config, (2, 4, 4), 1, (1, 2))
    assert [row["variant"] for row in figures["decode"]] == [
        "ours, 1 at once",
        "ours, 2 at once",
        "diffusers",
    ]
    assert gpu_check.agrees(figures)


def test_one_part_that_is_off_fails_the_check():
    sound = {"rows": [{"ok": True}, {"ms": 1.0}], "ok": True}
    assert gpu_check.agrees([sound, {"part": sound}])
    assert not gpu_check.agrees([sound, {"part": {"rows": [{"ok": False}]}}])


def test_the_gpu_check_refuses_an_unknown_part(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check", "sana", "wan_2"])
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert "no such part: wan_2" in capsys.readouterr().err
