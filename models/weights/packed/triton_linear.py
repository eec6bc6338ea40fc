"""Product of a few rows with a packed weight by one Triton kernel, for CUDA devices.

Each program owns some output features, walks along the packed rows, dequantises a tile at a time in
registers and multiplies it on the tensor cores: the weight crosses the memory bus once, at its
packed size. Importing this module imports Triton; see `triton_dequantize` for its interpreter.
"""

# ruff: noqa: ANN001, ANN202 (what a kernel takes and returns has no Python type)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.weights.gguf.format import QuantType
from models.weights.packed.triton_decode import decode

_FEATURES_PER_PROGRAM = 32
_GROUPS_PER_TILE = 4
_SMALLEST_DOT = 16


@triton.jit
def _linear_kernel(
    x,
    data,
    halves,
    bias,
    out,
    rows,
    in_features,
    out_features,
    last_group,
    TYPE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    GROUPS: tl.constexpr,
):
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    groups_per_row = in_features // 32
    row_start = feature.to(tl.int64)[:, None, None] * groups_per_row
    position = tl.arange(0, 32)[None, None, :]
    total = tl.zeros((ROWS, FEATURES), tl.float32)
    for start in range(0, groups_per_row, GROUPS):
        group = row_start + start + tl.arange(0, GROUPS)[None, :, None]
        tile = decode(data, halves, tl.minimum(group, last_group), position, TYPE)
        tile = tl.reshape(tile, (FEATURES, GROUPS * 32))
        column = start * 32 + tl.arange(0, GROUPS * 32)
        # What was read past the end of a row may be infinite: zero times that is not zero.
        tile = tl.where(column[None, :] < in_features, tile, 0.0)
        inside = (row[:, None] < rows) & (column[None, :] < in_features)
        part = tl.load(x + row.to(tl.int64)[:, None] * in_features + column[None, :], inside, 0.0)
        weight = tl.trans(tile.to(part.dtype))
        total = tl.dot(part, weight, total, input_precision="ieee")
    if HAS_BIAS:
        shift = tl.load(bias + feature, feature < out_features, 0.0)
        total += shift.to(tl.float32)[None, :]
    place = out + row.to(tl.int64)[:, None] * out_features + feature[None, :]
    inside = (row[:, None] < rows) & (feature[None, :] < out_features)
    tl.store(place, total.to(out.dtype.element_ty), inside)


def linear(x: Tensor, data: Tensor, type: QuantType, bias: Tensor | None) -> Tensor:
    """`x` [..., columns] times the transposed matrix packed in `data` [features, bytes per row].

    Weights are rounded to the dtype of `x` as if dequantised first, sums are float32; the result
    [..., features] has the dtype of `x`. `data` is contiguous.
    """
    in_features, out_features = x.shape[-1], data.shape[0]
    flat = x.reshape(-1, in_features).contiguous()
    rows = flat.shape[0]
    out = torch.empty(rows, out_features, dtype=x.dtype, device=x.device)
    rows_per_program = max(_SMALLEST_DOT, min(64, triton.next_power_of_2(rows)))
    grid = (triton.cdiv(out_features, _FEATURES_PER_PROGRAM), triton.cdiv(rows, rows_per_program))
    _linear_kernel[grid](
        flat,
        data,
        data.view(torch.float16),
        out if bias is None else bias,
        out,
        rows,
        in_features,
        out_features,
        out_features * in_features // 32 - 1,
        TYPE=int(type),
        HAS_BIAS=bias is not None,
        ROWS=rows_per_program,
        FEATURES=_FEATURES_PER_PROGRAM,
        GROUPS=_GROUPS_PER_TILE,
        enable_fp_fusion=False,
    )
    return out.view(*x.shape[:-1], out_features)
