"""What a device multiplies natively decides the dtype of fast paths, never whether they work."""

from __future__ import annotations

import torch

from models.native_dtypes import fastest_dtype, multiplies_bfloat16


def test_gpus_multiply_bfloat16():
    assert multiplies_bfloat16(torch.device("cuda"))
    assert fastest_dtype(torch.device("cuda")) is torch.bfloat16


def test_a_processor_without_bfloat16_computes_in_float32(monkeypatch):
    cpu = torch.device("cpu")
    is_supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert multiplies_bfloat16(cpu) is is_supported
    monkeypatch.setattr("models.native_dtypes.multiplies_bfloat16", lambda device: False)
    assert fastest_dtype(cpu) is torch.float32
