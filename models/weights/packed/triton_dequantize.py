"""Dequantisation of GGUF blocks by one Triton kernel, for CUDA devices.

Importing this module imports Triton. With TRITON_INTERPRET=1 in the environment before that, the
kernel runs on CPU tensors, slowly: this is how it is tested where there is no GPU.
"""

# ruff: noqa: ANN001, ANN202 (what a kernel takes and returns has no Python type)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.weights.gguf.format import QuantType
from models.weights.packed.triton_decode import decode

_GROUPS_PER_PROGRAM = 64


@triton.jit
def _dequantize_kernel(
    data, halves, out, groups, TYPE: tl.constexpr, GROUPS_PER_PROGRAM: tl.constexpr
):
    first = tl.program_id(0).to(tl.int64) * GROUPS_PER_PROGRAM
    group = first + tl.arange(0, GROUPS_PER_PROGRAM)[:, None]
    position = tl.arange(0, 32)[None, :]
    # Groups past the end read the last one again and are not stored.
    value = decode(data, halves, tl.minimum(group, groups - 1), position, TYPE)
    tl.store(out + group * 32 + position, value.to(out.dtype.element_ty), mask=group < groups)


def dequantize(data: Tensor, type: QuantType, out: Tensor) -> Tensor:
    """Fill `out` [rows, columns] from `data` uint8 [rows, bytes per row]; returns `out`.

    Both are contiguous and on the same device; `out` is float32, float16 or bfloat16. In float32
    the result equals `models.weights.gguf.dequantize` bit for bit.
    """
    groups = out.numel() // 32
    grid = (triton.cdiv(groups, _GROUPS_PER_PROGRAM),)
    # Fused multiply-add would skip a rounding that the reference makes.
    _dequantize_kernel[grid](
        data,
        data.view(torch.float16),
        out,
        groups,
        TYPE=int(type),
        GROUPS_PER_PROGRAM=_GROUPS_PER_PROGRAM,
        enable_fp_fusion=False,
    )
    return out
