"""From packed bytes to float32 inside Triton kernels: one function per GGUF block type.

A tensor of blocks is seen as groups of 32 consecutive elements; `group` counts them from the first
byte on and broadcasts against `position` (0..31 inside the group), so that whatever belongs to a
group as a whole is read once for it. `data` points to the bytes, `halves` to the same memory as
float16, in which all types keep their scales. The order of operations is that of the reference in
the `gguf` package; with floating-point fusion switched off the results are equal bit for bit.

Block layouts: ggml-common.h of the ggml project.
"""

# ruff: noqa: ANN001, ANN201, ANN202 (what a kernel takes and returns has no Python type)
from __future__ import annotations

import triton
import triton.language as tl

# The sixteen levels of the IQ4 types, one signed byte each: levels 0..7 and 8..15.
_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_LOWER_LEVELS = tl.constexpr(
    int.from_bytes(bytes(level & 0xFF for level in _LEVELS[:8]), "little", signed=True)
)
_UPPER_LEVELS = tl.constexpr(
    int.from_bytes(bytes(level & 0xFF for level in _LEVELS[8:]), "little", signed=True)
)


@triton.jit
def _byte(data, offset):
    return tl.load(data + offset).to(tl.int32)


@triton.jit
def _half(halves, index):
    return tl.load(halves + index).to(tl.float32)


@triton.jit
def _nibble(data, offset, position):
    # Sixteen bytes: elements 0..15 in the low nibbles, 16..31 in the high ones.
    return (_byte(data, offset + position % 16) >> (position // 16 * 4)) & 15


@triton.jit
def _level(index):
    word = tl.where(index < 8, _LOWER_LEVELS, _UPPER_LEVELS)
    return ((word >> ((index % 8) * 8).to(tl.int64)) & 255).to(tl.int8).to(tl.float32)


@triton.jit
def _scale_and_minimum(data, offset, index):
    # Eight 6-bit scales and eight 6-bit minima in twelve bytes.
    scale_bits = _byte(data, offset + index % 4)
    minimum_bits = _byte(data, offset + index % 4 + 4)
    rest = _byte(data, offset + index % 4 + 8)
    first = index < 4
    scale = tl.where(first, scale_bits & 63, (rest & 15) | ((scale_bits >> 2) & 48))
    minimum = tl.where(first, minimum_bits & 63, (rest >> 4) | ((minimum_bits >> 2) & 48))
    return scale.to(tl.float32), minimum.to(tl.float32)


@triton.jit
def _q4_0(data, halves, group, position):
    quant = _nibble(data, group * 18 + 2, position) - 8
    return _half(halves, group * 9) * quant.to(tl.float32)


@triton.jit
def _q4_1(data, halves, group, position):
    quant = _nibble(data, group * 20 + 4, position)
    return _half(halves, group * 10) * quant.to(tl.float32) + _half(halves, group * 10 + 1)


@triton.jit
def _q5_0(data, halves, group, position):
    high = (_byte(data, group * 22 + 2 + position // 8) >> (position % 8)) & 1
    quant = (_nibble(data, group * 22 + 6, position) | (high << 4)) - 16
    return _half(halves, group * 11) * quant.to(tl.float32)


@triton.jit
def _q5_1(data, halves, group, position):
    high = (_byte(data, group * 24 + 4 + position // 8) >> (position % 8)) & 1
    quant = _nibble(data, group * 24 + 8, position) | (high << 4)
    return _half(halves, group * 12) * quant.to(tl.float32) + _half(halves, group * 12 + 1)


@triton.jit
def _q8_0(data, halves, group, position):
    quant = tl.load(data + group * 34 + 2 + position).to(tl.int8, bitcast=True)
    return quant.to(tl.float32) * _half(halves, group * 17)


@triton.jit
def _q2_k(data, halves, group, position):
    block = group // 8
    part = group % 8
    start = block * 84
    scales = _byte(data, start + part * 2 + position // 16)
    scale = _half(halves, block * 42 + 40) * (scales & 15).to(tl.float32)
    minimum = _half(halves, block * 42 + 41) * (scales >> 4).to(tl.float32)
    quant = (_byte(data, start + 16 + part // 4 * 32 + position) >> (part % 4 * 2)) & 3
    return scale * quant.to(tl.float32) - minimum


@triton.jit
def _q3_k(data, halves, group, position):
    block = group // 8
    part = group % 8
    start = block * 110
    index = part * 2 + position // 16
    low = (_byte(data, start + 96 + index % 8) >> (index // 8 * 4)) & 15
    high = (_byte(data, start + 104 + index % 4) >> (index // 4 * 2)) & 3
    scale = _half(halves, block * 55 + 54) * ((low | (high << 4)) - 32).to(tl.float32)
    quant = (_byte(data, start + 32 + part // 4 * 32 + position) >> (part % 4 * 2)) & 3
    # A set bit means that nothing is taken away.
    keep = (_byte(data, start + position) >> part) & 1
    return scale * (quant - ((keep ^ 1) << 2)).to(tl.float32)


@triton.jit
def _q4_k(data, halves, group, position):
    block = group // 8
    part = group % 8
    start = block * 144
    scale, minimum = _scale_and_minimum(data, start + 4, part)
    quant = (_byte(data, start + 16 + part // 2 * 32 + position) >> (part % 2 * 4)) & 15
    scale = _half(halves, block * 72) * scale
    return scale * quant.to(tl.float32) - _half(halves, block * 72 + 1) * minimum


@triton.jit
def _q5_k(data, halves, group, position):
    block = group // 8
    part = group % 8
    start = block * 176
    scale, minimum = _scale_and_minimum(data, start + 4, part)
    low = (_byte(data, start + 48 + part // 2 * 32 + position) >> (part % 2 * 4)) & 15
    high = (_byte(data, start + 16 + position) >> part) & 1
    scale = _half(halves, block * 88) * scale
    return scale * (low | (high << 4)).to(tl.float32) - _half(halves, block * 88 + 1) * minimum


@triton.jit
def _q6_k(data, halves, group, position):
    block = group // 8
    part = group % 8
    start = block * 210
    half_block = part // 4
    low = _byte(data, start + half_block * 64 + part % 2 * 32 + position)
    low = (low >> (part % 4 // 2 * 4)) & 15
    high = (_byte(data, start + 128 + half_block * 32 + position) >> (part % 4 * 2)) & 3
    scale = tl.load(data + start + 192 + part * 2 + position // 16).to(tl.int8, bitcast=True)
    scale = _half(halves, block * 105 + 104) * scale.to(tl.float32)
    return scale * ((low | (high << 4)) - 32).to(tl.float32)


@triton.jit
def _iq4_nl(data, halves, group, position):
    return _half(halves, group * 9) * _level(_nibble(data, group * 18 + 2, position))


@triton.jit
def _iq4_xs(data, halves, group, position):
    block = group // 8
    part = group % 8
    start = block * 136
    low = (_byte(data, start + 4 + part // 2) >> (part % 2 * 4)) & 15
    high = (_byte(data, start + 2 + part // 4) >> (part % 4 * 2)) & 3
    scale = _half(halves, block * 68) * ((low | (high << 4)) - 32).to(tl.float32)
    return scale * _level(_nibble(data, start + 8 + part * 16, position))


@triton.jit
def decode(data, halves, group, position, TYPE: tl.constexpr):
    """float32 values of the elements at `position` in `group`; `TYPE` is a QuantType's number."""
    if TYPE == 2:
        value = _q4_0(data, halves, group, position)
    elif TYPE == 3:
        value = _q4_1(data, halves, group, position)
    elif TYPE == 6:
        value = _q5_0(data, halves, group, position)
    elif TYPE == 7:
        value = _q5_1(data, halves, group, position)
    elif TYPE == 8:
        value = _q8_0(data, halves, group, position)
    elif TYPE == 10:
        value = _q2_k(data, halves, group, position)
    elif TYPE == 11:
        value = _q3_k(data, halves, group, position)
    elif TYPE == 12:
        value = _q4_k(data, halves, group, position)
    elif TYPE == 13:
        value = _q5_k(data, halves, group, position)
    elif TYPE == 14:
        value = _q6_k(data, halves, group, position)
    elif TYPE == 20:
        value = _iq4_nl(data, halves, group, position)
    else:
        tl.static_assert(TYPE == 23, "no such block type")
        value = _iq4_xs(data, halves, group, position)
    return value
