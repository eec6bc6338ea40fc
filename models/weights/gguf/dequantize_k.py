"""Numbers out of K-quant blocks: 256 elements with a two-level scale.

A super-block holds sub-blocks of 16 or 32 elements. Each sub-block has a small integer scale (and,
in some types, a minimum), which the super-block's half-precision factors turn into real ones:
x = (d * scale) * q or x = (d * scale) * q - dmin * minimum, evaluated in that order in float32.

Every function takes blocks, uint8 [n, bytes per block], and fills `out`, float32 [n, 256].
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.weights.gguf.bits import field, words


def q2_k(blocks: Tensor, out: Tensor) -> None:
    """16 sub-blocks; 4-bit scales and minima, 2-bit numbers."""
    n = blocks.shape[0]
    factors = _halves(blocks, 80, 2)
    packed = words(blocks[:, :16])
    scales = field(packed, 0, 4).view(torch.uint8).float().mul_(factors[:, :1])
    minima = field(packed, 4, 4).view(torch.uint8).float().mul_(factors[:, 1:])
    _unpack_two_bits(words(blocks[:, 16:80]), out)
    groups = out.view(n, 16, 16)
    groups.mul_(scales[:, :, None]).sub_(minima[:, :, None])


def q3_k(blocks: Tensor, out: Tensor) -> None:
    """16 sub-blocks; signed 6-bit scales; numbers of 2 bits and, in a plane of its own, 1 bit."""
    n = blocks.shape[0]
    low = words(blocks[:, 96:104])
    high = blocks[:, 104:108].clone(memory_format=torch.contiguous_format).view(torch.int32)
    scales = torch.empty(n, 16, dtype=torch.uint8, device=blocks.device)
    scales[:, :8] = field(low, 0, 4).view(torch.uint8)
    scales[:, 8:] = field(low, 4, 4).view(torch.uint8)
    quarters = scales.view(torch.int32)
    for quarter in range(4):
        top = (high >> 2 * quarter) & 0x03030303
        quarters[:, quarter] |= top[:, 0] << 4
    factors = scales.view(torch.int8).sub_(32).float().mul_(_halves(blocks, 108, 1))
    mask = words(blocks[:, :32])
    groups = out.view(n, 2, 4, 32)
    for half in range(2):
        packed = words(blocks[:, 32 + 32 * half : 64 + 32 * half])
        for position in range(4):
            q = field(packed, 2 * position, 2)
            q.bitwise_or_(field(mask, 4 * half + position, 1, to=2))
            groups[:, half, position].copy_(q.view(torch.int8).sub_(4))
    out.view(n, 16, 16).mul_(factors[:, :, None])


def q4_k(blocks: Tensor, out: Tensor) -> None:
    """8 sub-blocks; 6-bit scales and minima, 4-bit numbers."""
    n = blocks.shape[0]
    scales, minima = _scales_and_minima(blocks)
    packed = words(blocks[:, 16:])
    pairs = out.view(n, 4, 2, 32)
    pairs[:, :, 0].copy_(field(packed, 0, 4).view(torch.uint8).view(n, 4, 32))
    pairs[:, :, 1].copy_(field(packed, 4, 4).view(torch.uint8).view(n, 4, 32))
    out.view(n, 8, 32).mul_(scales[:, :, None]).sub_(minima[:, :, None])


def q5_k(blocks: Tensor, out: Tensor) -> None:
    """8 sub-blocks; 6-bit scales and minima; numbers of 4 bits and, in an own plane, 1 bit."""
    n = blocks.shape[0]
    scales, minima = _scales_and_minima(blocks)
    top = words(blocks[:, 16:48])
    groups = out.view(n, 8, 32)
    for pair in range(4):
        packed = words(blocks[:, 48 + 32 * pair : 80 + 32 * pair])
        for half in range(2):
            q = field(packed, 4 * half, 4)
            q.bitwise_or_(field(top, 2 * pair + half, 1, to=4))
            groups[:, 2 * pair + half].copy_(q.view(torch.uint8))
    groups.mul_(scales[:, :, None]).sub_(minima[:, :, None])


def q6_k(blocks: Tensor, out: Tensor) -> None:
    """16 sub-blocks; signed 8-bit scales; numbers of 4 bits and, in an own plane, 2 bits."""
    n = blocks.shape[0]
    scales = blocks.view(torch.int8)[:, 192:208].float().mul_(_halves(blocks, 208, 1))
    groups = out.view(n, 2, 4, 32)
    for half in range(2):
        high = words(blocks[:, 128 + 32 * half : 160 + 32 * half])
        for side in range(2):
            start = 64 * half + 32 * side
            low = words(blocks[:, start : start + 32])
            for nibble in range(2):
                group = 2 * nibble + side
                q = field(low, 4 * nibble, 4)
                q.bitwise_or_(field(high, 2 * group, 2, to=4))
                groups[:, half, group].copy_(q.view(torch.int8).sub_(32))
    out.view(n, 16, 16).mul_(scales[:, :, None])


def _halves(blocks: Tensor, start: int, count: int) -> Tensor:
    """Half-precision numbers from byte `start` on: float32 [n, count]."""
    return blocks.view(torch.float16)[:, start // 2 : start // 2 + count].float()


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Real scales and minima, float32 [n, 8] each, of Q4_K and Q5_K.

    Twelve bytes hold 16 six-bit numbers: four bytes with the scales 0-3 below the top bits of the
    scales 4-7, four alike for the minima, four with both kinds' low nibbles 4-7. Taken as one
    int32 for every four bytes, so that one operation does four numbers.
    """
    factors = _halves(blocks, 0, 2)
    first, second, rest = blocks.view(torch.int32)[:, 1:4].unbind(1)
    packed = torch.empty(2, blocks.shape[0], 2, dtype=torch.int32, device=blocks.device)
    for kind, (lows, shift) in enumerate(((first, 0), (second, 4))):
        packed[kind, :, 0] = lows & 0x3F3F3F3F
        packed[kind, :, 1] = ((rest >> shift) & 0x0F0F0F0F) | ((lows >> 2) & 0x30303030)
    scales, minima = packed.view(torch.uint8).float()
    return scales.mul_(factors[:, :1]), minima.mul_(factors[:, 1:])


def _unpack_two_bits(packed: Tensor, out: Tensor) -> None:
    """Each run of 32 bytes holds four groups of 32 numbers, the first in the lowest bits."""
    n = out.shape[0]
    groups = out.view(n, 2, 4, 32)
    for position in range(4):
        groups[:, :, position].copy_(
            field(packed, 2 * position, 2).view(torch.uint8).view(n, 2, 32)
        )
