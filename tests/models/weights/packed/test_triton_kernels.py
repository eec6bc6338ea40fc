"""The Triton kernels interpreted, compiled for GPUs that are not there, and run on one that is.

Each in a process of its own: whether Triton interprets is settled when it is first imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[3]
CASES = ["-m", "pytest", str(FOLDER / "triton_cases.py"), "-q", "-x"]


def run_python(arguments: list[str], environment: dict[str, str]) -> str:
    pytest.importorskip("triton", reason="Triton is not published for this platform")
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    return result.stdout


def test_interpreted_kernels_agree_with_the_reference():
    run_python(CASES, {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""})


def test_kernels_compile_for_tensor_cores_without_a_gpu(tmp_path):
    arguments = [str(FOLDER / "compile_kernels.py"), "80", "90"]
    environment = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    found = json.loads(run_python(arguments, environment))
    assert set(found) == {"80", "90"}
    for code in found.values():
        # Fused, the result would differ from the reference in the last bit.
        assert code["fused_multiply_adds"] == 0
        assert code["wide_stores"] > 0
        assert code["tensor_core_products"] > 0
        assert code["spills"] == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_kernels_agree_with_the_reference():
    run_python(CASES, {"TRITON_INTERPRET": "0"})
