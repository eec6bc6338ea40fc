"""Packed bits as bytes: eight bytes at a time, with masks and shifts on 64-bit words.

Blocks keep 4-, 2- and 1-bit numbers packed in bytes. torch has no instruction for that, but a shift
and a mask on an int64 treat eight bytes at once, at the rate of memory. Words never carry into the
neighbouring byte, since every shift is masked down to bits that stay in place. Hosts and devices
are little-endian, as the format is.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_ONES = 0x0101010101010101


def words(data: Tensor) -> Tensor:
    """Bytes [..., n] as a fresh int64 tensor [..., n / 8] that may be written to."""
    return data.clone(memory_format=torch.contiguous_format).view(torch.int64)


def field(source: Tensor, low: int, bits: int, to: int = 0) -> Tensor:
    """The `bits` bits from bit `low` of every byte moved to bit `to`: int64 words as `source`.

    The topmost bit can not be the target, since the mask has to be a positive number.
    """
    mask = (((1 << bits) - 1) << to) * _ONES
    if to > low:
        return torch.bitwise_left_shift(source, to - low).bitwise_and_(mask)
    if to < low:
        return torch.bitwise_right_shift(source, low - to).bitwise_and_(mask)
    return torch.bitwise_and(source, mask)


def spread_bits(data: Tensor, byte: int) -> Tensor:
    """Each bit of bytes [..., n] as a byte of its own, lowest first: `byte` where set, else zero.

    Returns int64 words [..., n].
    """
    index = data.to(torch.int32).flatten()
    table = _spread_table(byte, data.device)
    return table.index_select(0, index).view(data.shape)


@lru_cache(maxsize=16)
def _spread_table(byte: int, device: torch.device) -> Tensor:
    # Under inference mode the table would be an inference tensor for ever.
    with torch.inference_mode(False):
        numbers = torch.arange(256, dtype=torch.int32)[:, None]
        bits = (numbers >> torch.arange(8, dtype=torch.int32)) & 1
        return (bits * byte).to(torch.uint8).view(torch.int64).flatten().to(device)
