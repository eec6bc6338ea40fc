"""One reusable piece of memory per thread and device, for weights dequantised a moment before use.

A packed linear layer needs its weight in full for the length of one matrix product. Allocating it
anew in every call costs a page fault for every page; here all layers of a model write to the same
bytes, which therefore stay in the cache, and the memory held is that of the largest weight.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

_local = threading.local()


def scratch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, valid until the same thread asks again for the same device.

    On CUDA the next user must run on the same stream, which orders the two uses.
    """
    needed = math.prod(shape) * dtype.itemsize
    buffers = _buffers()
    buffer = buffers.get(device)
    if buffer is None or buffer.numel() < needed:
        # The old one goes first, so that both never exist at once.
        buffer = buffers.pop(device, None)
        del buffer
        # Written to inside and outside of inference mode: an inference tensor could not be.
        with torch.inference_mode(False):
            buffer = torch.empty(needed, dtype=torch.uint8, device=device)
        buffers[device] = buffer
    return buffer[:needed].view(dtype).view(shape)


def release_scratch() -> None:
    """Free this thread's buffers; the next use allocates again."""
    _buffers().clear()


def _buffers() -> dict[torch.device, Tensor]:
    if not hasattr(_local, "buffers"):
        _local.buffers = {}
    return _local.buffers
