"""Numbers out of quantised blocks, in torch, on any device: the one door to all block types.

Blocks come in as bytes, as they lie in the file, and go out as float32, float16 or bfloat16. The
arithmetic is float32 in the order of operations of ggml and of `gguf.quants`, so that the float32
result equals theirs bit for bit; other types are that result rounded once. On a CPU the work goes
in pieces that stay in its caches: without that, each of the passes over a weight of tens of
megabytes would run at the rate of memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.weights.gguf import dequantize_iq4, dequantize_k
from models.weights.gguf.bits import field, spread_bits, words
from models.weights.gguf.format import BLOCK, QuantType
from models.weights.gguf.plain_types import PLAIN_DTYPES

# Elements treated at once: few enough for the caches, many enough that the calls cost little.
_PIECE = 1 << 20
# An accelerator has no such cache, but the float32 intermediates should stay small beside a model.
_DEVICE_PIECE = 1 << 26


def dequantize(
    data: Tensor,
    type: QuantType,
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """The numbers of whole blocks: uint8 [..., bytes] to `dtype` [..., elements].

    `data` is only read. With `out`, a contiguous tensor of the result's shape on the same device,
    the result is written there in its dtype and `dtype` is ignored; otherwise it is allocated.
    Scales may be denormal, infinite or NaN and give what IEEE arithmetic gives. Raises ValueError
    when `data` is not uint8, the last dimension is no whole number of blocks, or `out` does not
    fit. Reference: `dequantize_row_*` in ggml-quants.c.
    """
    shape = _result_shape(data, type)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=data.device)
    elif out.shape != shape or not out.is_contiguous() or out.device != data.device:
        raise ValueError(
            f"out must be a contiguous tensor {list(shape)} on {data.device}, "
            f"found {list(out.shape)} on {out.device}"
        )
    elements, size = BLOCK[type]
    blocks = _aligned(data).view(-1, size)
    result = out.view(-1, elements)
    if (stored := PLAIN_DTYPES.get(type)) is not None:
        result.copy_(blocks.view(stored))
        return out
    unpack = _UNPACK[type]
    step = _piece_size(data.device) // elements
    direct = out.dtype == torch.float32
    scratch = result if direct else _scratch(min(step, len(blocks)), elements, data.device)
    for start in range(0, len(blocks), step):
        piece = blocks[start : start + step]
        if direct:
            unpack(piece, result[start : start + step])
        else:
            numbers = scratch[: len(piece)]
            unpack(piece, numbers)
            result[start : start + step].copy_(numbers)
    return out


def _result_shape(data: Tensor, type: QuantType) -> torch.Size:
    elements, size = BLOCK[type]
    if data.dtype != torch.uint8 or data.ndim == 0:
        raise ValueError(f"blocks must be uint8 [..., bytes], found {data.dtype} {[*data.shape]}")
    if data.shape[-1] % size:
        raise ValueError(
            f"{type.name} blocks take {size} bytes: rows of {data.shape[-1]} bytes are not whole"
        )
    return torch.Size((*data.shape[:-1], data.shape[-1] // size * elements))


def _aligned(data: Tensor) -> Tensor:
    """The same bytes in one dimension, at an offset where they can be viewed as wider numbers."""
    data = data.contiguous().view(-1)
    return data.clone() if data.storage_offset() % 4 else data


def _piece_size(device: torch.device) -> int:
    # A thread takes an equal share of each operation, so that shares stay in their core's caches.
    return _PIECE * max(1, torch.get_num_threads() // 4) if device.type == "cpu" else _DEVICE_PIECE


def _scratch(rows: int, elements: int, device: torch.device) -> Tensor:
    return torch.empty(rows, elements, dtype=torch.float32, device=device)


def _scale(blocks: Tensor, index: int = 0) -> Tensor:
    """The half-precision number at half `index` of each block: float32 [n, 1]."""
    return blocks.view(torch.float16)[:, index : index + 1].float()


def _q8_0(blocks: Tensor, out: Tensor) -> None:
    """A scale and 32 signed bytes."""
    out.copy_(blocks.view(torch.int8)[:, 2:]).mul_(_scale(blocks))


def _q4_0(blocks: Tensor, out: Tensor) -> None:
    """A scale and 32 nibbles, stored with 8 added."""
    packed = words(blocks[:, 2:])
    out[:, :16].copy_(field(packed, 0, 4).view(torch.int8).sub_(8))
    out[:, 16:].copy_(field(packed, 4, 4).view(torch.int8).sub_(8))
    out.mul_(_scale(blocks))


def _q4_1(blocks: Tensor, out: Tensor) -> None:
    """A scale, a minimum and 32 nibbles."""
    packed = words(blocks[:, 4:])
    out[:, :16].copy_(field(packed, 0, 4).view(torch.uint8))
    out[:, 16:].copy_(field(packed, 4, 4).view(torch.uint8))
    out.mul_(_scale(blocks)).add_(_scale(blocks, 1))


def _q5_0(blocks: Tensor, out: Tensor) -> None:
    """A scale, 32 fifth bits and 32 nibbles, stored with 16 added."""
    out.copy_(_five_bits(blocks[:, 2:6], blocks[:, 6:]).view(torch.int8).sub_(16))
    out.mul_(_scale(blocks))


def _q5_1(blocks: Tensor, out: Tensor) -> None:
    """A scale, a minimum, 32 fifth bits and 32 nibbles."""
    out.copy_(_five_bits(blocks[:, 4:8], blocks[:, 8:]))
    out.mul_(_scale(blocks)).add_(_scale(blocks, 1))


def _five_bits(top: Tensor, nibbles: Tensor) -> Tensor:
    """Numbers 0 to 31, uint8 [n, 32], of fifth bits [n, 4] and nibbles [n, 16]."""
    q = spread_bits(top, 0x10)
    packed = words(nibbles)
    q[:, :2].bitwise_or_(field(packed, 0, 4))
    q[:, 2:].bitwise_or_(field(packed, 4, 4))
    return q.view(torch.uint8)


_UNPACK: dict[QuantType, Callable[[Tensor, Tensor], None]] = {
    QuantType.Q4_0: _q4_0,
    QuantType.Q4_1: _q4_1,
    QuantType.Q5_0: _q5_0,
    QuantType.Q5_1: _q5_1,
    QuantType.Q8_0: _q8_0,
    QuantType.Q2_K: dequantize_k.q2_k,
    QuantType.Q3_K: dequantize_k.q3_k,
    QuantType.Q4_K: dequantize_k.q4_k,
    QuantType.Q5_K: dequantize_k.q5_k,
    QuantType.Q6_K: dequantize_k.q6_k,
    QuantType.IQ4_NL: dequantize_iq4.iq4_nl,
    QuantType.IQ4_XS: dequantize_iq4.iq4_xs,
}
