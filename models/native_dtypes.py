"""Which number formats a device multiplies by itself.

A product in a format that the processor lacks still comes out right, but through conversions that
cost ten times the product or more: bfloat16 on a CPU without AVX-512 or AMX is the common case.
"""

from __future__ import annotations

import torch


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are no slower on the device than in float32."""
    if device.type != "cpu":
        return True
    # The same question that torch's own compiler asks before it chooses bfloat16 kernels.
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it, else float32."""
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
