"""GPU detection without a tensor library."""

from __future__ import annotations

import pytest

from denoised.gpus import visible_gpus

LISTING = """\
GPU 0: NVIDIA H200 (UUID: GPU-11111111-aaaa-bbbb-cccc-000000000000)
  MIG 1g.18gb Device 0: (UUID: MIG-22222222-aaaa-bbbb-cccc-000000000000)
GPU 1: NVIDIA H200 (UUID: GPU-33333333-aaaa-bbbb-cccc-000000000000)
"""


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts a program named nvidia-smi with the given behaviour on an otherwise empty PATH."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(script):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return install


def test_every_gpu_is_listed_by_its_uuid(nvidia_smi):
    nvidia_smi(f"echo '{LISTING}'")
    assert visible_gpus() == [
        "GPU-11111111-aaaa-bbbb-cccc-000000000000",
        "GPU-33333333-aaaa-bbbb-cccc-000000000000",
    ]


def test_a_machine_without_the_driver_has_none(nvidia_smi):
    assert visible_gpus() == []


def test_a_driver_that_fails_offers_none(nvidia_smi):
    nvidia_smi("echo 'NVIDIA-SMI has failed'; exit 9")
    assert visible_gpus() == []


@pytest.mark.parametrize(
    ("chosen", "expected"), [("1,3", ["1", "3"]), ("", []), ("-1", []), ("GPU-5", ["GPU-5"])]
)
def test_a_choice_made_in_the_environment_is_kept(monkeypatch, chosen, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == expected
