"""K-quant blocks as bytes: the inverse of `dequantize_k`, after `quantize_k` has found the numbers.

Every function takes super-blocks, float32 [n, 256], and returns their bytes, uint8 [n, size].
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.weights.gguf.quantize_k import signed, with_minima


def q2_k(blocks: Tensor) -> Tensor:
    """16 sub-blocks; 4-bit scales and minima, 2-bit numbers."""
    factors, scales, minima, q = with_minima(blocks, 16, levels=3, scale_levels=15)
    return torch.cat([scales | minima << 4, _pack_two_bits(q), _bytes(factors)], 1)


def q3_k(blocks: Tensor) -> Tensor:
    """16 sub-blocks; signed 6-bit scales; numbers of 2 bits and, in a plane of its own, 1 bit."""
    d, scales, q = signed(blocks, levels=4, scale_levels=32)
    raised = (q + 4).byte()
    # Sub-block group g of 32 elements has bit g.
    mask = _pack_bits((raised >> 2).view(-1, 8, 32), step=1)
    scales = (scales + 32).byte()
    low = scales[:, :8] & 0x0F | (scales[:, 8:] & 0x0F) << 4
    high = _pack_bits((scales >> 4).view(-1, 4, 4), step=2)
    return torch.cat([mask, _pack_two_bits(raised & 3), low, high, _bytes(d)], 1)


def q4_k(blocks: Tensor) -> Tensor:
    """8 sub-blocks; 6-bit scales and minima, 4-bit numbers."""
    factors, scales, minima, q = with_minima(blocks, 8, levels=15, scale_levels=63)
    return torch.cat([_bytes(factors), _pack_scales(scales, minima), _pack_nibbles(q)], 1)


def q5_k(blocks: Tensor) -> Tensor:
    """8 sub-blocks; 6-bit scales and minima; numbers of 4 bits and, in an own plane, 1 bit."""
    factors, scales, minima, q = with_minima(blocks, 8, levels=31, scale_levels=63)
    top = _pack_bits((q >> 4).view(-1, 8, 32), step=1)
    return torch.cat(
        [_bytes(factors), _pack_scales(scales, minima), top, _pack_nibbles(q & 0x0F)], 1
    )


def q6_k(blocks: Tensor) -> Tensor:
    """16 sub-blocks; signed 8-bit scales; numbers of 4 bits and, in an own plane, 2 bits."""
    d, scales, q = signed(blocks, levels=32, scale_levels=128)
    raised = (q + 32).byte().view(-1, 2, 4, 32)
    low = raised & 0x0F
    nibbles = low[:, :, :2] | low[:, :, 2:] << 4
    top = _pack_bits((raised >> 4).view(-1, 4, 32), step=2)
    n = blocks.shape[0]
    return torch.cat(
        [nibbles.reshape(n, 128), top.view(n, 64), scales.view(torch.uint8), _bytes(d)], 1
    )


def _bytes(factors: Tensor) -> Tensor:
    return factors.view(torch.uint8)


def _pack_nibbles(q: Tensor) -> Tensor:
    """Numbers 0 to 15, uint8 [n, 256]: in each run of 64 the first half goes into the low bits."""
    return _pack_bits(q.view(-1, 2, 32), step=4).view(q.shape[0], 128)


def _pack_two_bits(q: Tensor) -> Tensor:
    """Numbers 0 to 3, uint8 [n, 256]: in each run of 128 the first quarter goes lowest."""
    return _pack_bits(q.view(-1, 4, 32), step=2).view(q.shape[0], 64)


def _pack_bits(parts: Tensor, step: int) -> Tensor:
    """uint8 [n, parts, bytes] to [n, bytes]: part i moves up by i * step bits, all are joined."""
    packed = parts[:, 0].clone()
    for index in range(1, parts.shape[1]):
        packed |= parts[:, index] << index * step
    return packed


def _pack_scales(scales: Tensor, minima: Tensor) -> Tensor:
    """Eight 6-bit scales and eight minima in twelve bytes; see `dequantize_k`."""
    return torch.cat(
        [
            scales[:, :4] | scales[:, 4:] >> 4 << 6,
            minima[:, :4] | minima[:, 4:] >> 4 << 6,
            scales[:, 4:] & 0x0F | (minima[:, 4:] & 0x0F) << 4,
        ],
        1,
    )
