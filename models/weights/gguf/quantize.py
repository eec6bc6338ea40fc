"""Numbers into quantised blocks, in torch: the one door to all block types that can be written.

F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 come out bit for bit as `gguf.quants.quantize` makes
them; the K types search for their scales (`quantize_k`). A weight is treated in pieces, so that a
search's intermediates stay small.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.weights.gguf import pack_k
from models.weights.gguf.format import BLOCK, QuantType
from models.weights.gguf.plain_types import PLAIN_DTYPES

# Elements treated at once by each thread.
_PIECE = 1 << 16
_LARGEST_HALF = 65504.0


class QuantizationError(ValueError):
    """A tensor cannot be written in the type that was asked for; the message says why."""


def quantize(tensor: Tensor, type: QuantType) -> Tensor:
    """Blocks of `type`, uint8 [..., bytes], of floating-point numbers [..., elements].

    Raises QuantizationError for IQ types, which are only read, when rows are no whole number of
    blocks, and when a value is not finite or beyond half precision (BF16 and F32 take any value).
    """
    elements, size = BLOCK[type]
    if type not in PLAIN_DTYPES and type not in _PACK:
        raise QuantizationError(f"{type.name} can be read but not written")
    if not tensor.is_floating_point() or tensor.ndim == 0:
        raise QuantizationError(f"{type.name} needs rows of floating-point numbers")
    if tensor.shape[-1] % elements:
        raise QuantizationError(
            f"{type.name} needs rows of a multiple of {elements} numbers, found {tensor.shape[-1]}"
        )
    if tensor.dtype.itemsize == 1:
        # Few operations know the 8-bit floating-point types.
        tensor = tensor.float()
    if type not in (QuantType.F32, QuantType.BF16):
        _check_range(tensor, type)
    if (stored := PLAIN_DTYPES.get(type)) is not None:
        return tensor.to(stored).contiguous().view(torch.uint8)
    blocks = tensor.contiguous().view(-1, elements)
    out = torch.empty(len(blocks), size, dtype=torch.uint8, device=tensor.device)
    step = _PIECE * torch.get_num_threads() // elements
    for start in range(0, len(blocks), step):
        piece = blocks[start : start + step].float()
        out[start : start + step] = _PACK[type](piece)
    return out.view(*tensor.shape[:-1], tensor.shape[-1] // elements * size)


def _check_range(tensor: Tensor, type: QuantType) -> None:
    if tensor.numel() == 0:
        return
    low, high = torch.aminmax(tensor)
    if not (float(low) >= -_LARGEST_HALF and float(high) <= _LARGEST_HALF):
        raise QuantizationError(
            f"{type.name} holds finite numbers up to {_LARGEST_HALF:g}, "
            f"found values from {float(low):g} to {float(high):g}"
        )


def _inverse(d: Tensor) -> Tensor:
    # The reciprocal of the smallest denormals is infinite: such blocks are zero in half precision.
    inverse = 1 / d
    return torch.where(inverse.isfinite(), inverse, 0.0)


def _bytes(d: Tensor) -> Tensor:
    return d.half().view(torch.uint8)


def _widest(blocks: Tensor) -> Tensor:
    """The value of each block that is largest in magnitude: [n, 1], with its sign."""
    return blocks.gather(1, blocks.abs().argmax(1, keepdim=True))


def _q8_0(blocks: Tensor) -> Tensor:
    d = blocks.abs().amax(1, keepdim=True) / 127
    scaled = blocks * _inverse(d)
    # Halves go away from zero, unlike in torch.round.
    magnitude = scaled.abs()
    floor = magnitude.floor()
    q = torch.sign(scaled) * (floor + (2 * (magnitude - floor)).floor())
    return torch.cat([_bytes(d), q.to(torch.int8).view(torch.uint8)], 1)


def _q4_0(blocks: Tensor) -> Tensor:
    d = _widest(blocks) / -8
    q = (blocks * _inverse(d) + 8.5).byte().clamp_(max=15)
    return torch.cat([_bytes(d), _pack_nibbles(q)], 1)


def _q4_1(blocks: Tensor) -> Tensor:
    d, low, q = _with_minimum(blocks, 15)
    return torch.cat([_bytes(d), _bytes(low), _pack_nibbles(q)], 1)


def _q5_0(blocks: Tensor) -> Tensor:
    d = _widest(blocks) / -16
    q = (blocks * _inverse(d) + 16.5).byte().clamp_(max=31)
    return torch.cat([_bytes(d), _pack_fifth_bits(q), _pack_nibbles(q)], 1)


def _q5_1(blocks: Tensor) -> Tensor:
    d, low, q = _with_minimum(blocks, 31)
    return torch.cat([_bytes(d), _bytes(low), _pack_fifth_bits(q), _pack_nibbles(q)], 1)


def _with_minimum(blocks: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    d = (high - low) / levels
    q = ((blocks - low) * _inverse(d) + 0.5).byte().clamp_(max=levels)
    return d, low, q


def _pack_nibbles(q: Tensor) -> Tensor:
    """The low four bits of uint8 [n, 32]: the first half of a block goes into the low bits."""
    return q[:, :16] & 0x0F | q[:, 16:] << 4


def _pack_fifth_bits(q: Tensor) -> Tensor:
    """Bit 4 of uint8 [n, 32], the first lowest: uint8 [n, 4]."""
    weights = 1 << torch.arange(8, dtype=torch.int32, device=q.device)
    bits = (q.view(-1, 4, 8) >> 4).int()
    return (bits * weights).sum(-1, dtype=torch.int32).byte()


_PACK: dict[QuantType, Callable[[Tensor], Tensor]] = {
    QuantType.Q4_0: _q4_0,
    QuantType.Q4_1: _q4_1,
    QuantType.Q5_0: _q5_0,
    QuantType.Q5_1: _q5_1,
    QuantType.Q8_0: _q8_0,
    QuantType.Q2_K: pack_k.q2_k,
    QuantType.Q3_K: pack_k.q3_k,
    QuantType.Q4_K: pack_k.q4_k,
    QuantType.Q5_K: pack_k.q5_k,
    QuantType.Q6_K: pack_k.q6_k,
}
