"""Which kernel multiplies: the whole table."""

from __future__ import annotations

import pytest
import torch

from models.weights.gguf.format import QuantType
from models.weights.packed.kernel_choice import FUSED_ROWS, Kernel, choose_kernel, has_triton

PLAIN = {
    QuantType.F32: torch.float32,
    QuantType.F16: torch.float16,
    QuantType.BF16: torch.bfloat16,
}
QUANTISED = [type for type in QuantType if type not in PLAIN]


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("rows", [None, 1, 4096])
def test_numbers_stored_in_the_dtype_of_the_input_are_used_as_they_are(device_type, rows):
    for type, dtype in PLAIN.items():
        kernel = choose_kernel(type, dtype, rows, device_type=device_type, triton=True)
        assert kernel is Kernel.VIEW


@pytest.mark.parametrize("type", QUANTISED, ids=lambda type: type.name)
def test_on_a_gpu_few_rows_are_fused_and_many_are_not(type):
    def kernel(rows):
        return choose_kernel(type, torch.bfloat16, rows, device_type="cuda", triton=True)

    assert kernel(1) is kernel(FUSED_ROWS) is Kernel.FUSED
    assert kernel(FUSED_ROWS + 1) is kernel(None) is Kernel.TRITON


@pytest.mark.parametrize("type", QuantType, ids=lambda type: type.name)
def test_without_gpu_or_triton_torch_dequantises(type):
    dtype = torch.float16 if type is QuantType.F32 else torch.float32
    for device_type, triton in (("cpu", True), ("cpu", False), ("cuda", False)):
        if PLAIN.get(type) is dtype:
            continue
        kernel = choose_kernel(type, dtype, None, device_type=device_type, triton=triton)
        assert kernel is Kernel.TORCH


@pytest.mark.parametrize("type", QUANTISED, ids=lambda type: type.name)
def test_on_a_cpu_few_rows_go_by_tiles_and_many_do_not(type):
    def kernel(rows):
        return choose_kernel(type, torch.float32, rows, device_type="cpu", triton=True)

    assert kernel(1) is kernel(FUSED_ROWS) is Kernel.TILED
    assert kernel(FUSED_ROWS + 1) is kernel(None) is Kernel.TORCH


def test_other_floating_dtypes_are_cast_by_torch_on_a_gpu_too():
    kernel = choose_kernel(QuantType.F16, torch.bfloat16, 1, device_type="cuda", triton=True)
    assert kernel is Kernel.TORCH


def test_without_a_compiler_triton_cannot_be_used(tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not published for this platform")
    # What was found is remembered: ask the function itself.
    find = has_triton.__wrapped__
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "/opt/compiler/cc")
    assert find()
    monkeypatch.delenv("CC")
    assert not find()
    (tmp_path / "gcc").touch(mode=0o755)
    assert find()
