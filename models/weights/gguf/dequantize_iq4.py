"""Numbers out of IQ4 blocks: 4-bit indices into 16 fixed values that are denser around zero.

Every function takes blocks, uint8 [n, bytes per block], and fills `out`, float32 [n, elements].
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from models.weights.gguf.bits import field, words

VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the indices 0 to 15 stand for, before the scale. Reference: ggml's `kvalues_iq4nl`."""


def iq4_nl(blocks: Tensor, out: Tensor) -> None:
    """32 elements, one half-precision scale."""
    _look_up(blocks[:, 2:], out)
    out.mul_(blocks.view(torch.float16)[:, :1].float())


def iq4_xs(blocks: Tensor, out: Tensor) -> None:
    """256 elements in 8 sub-blocks; a half-precision factor and signed 6-bit scales."""
    n = blocks.shape[0]
    factors = blocks.view(torch.float16)[:, :1].float()
    tops = blocks.view(torch.int16)[:, 1:2].to(torch.int32)
    packed = blocks[:, 4:8]
    scales = torch.empty(n, 8, dtype=torch.int32, device=blocks.device)
    scales[:, 0::2] = packed & 0x0F
    scales[:, 1::2] = packed >> 4
    shifts = torch.arange(0, 16, 2, dtype=torch.int32, device=blocks.device)
    scales += ((tops >> shifts) & 3) << 4
    _look_up(blocks[:, 8:], out)
    out.view(n, 8, 32).mul_((scales - 32).float().mul_(factors)[:, :, None])


def _look_up(indices: Tensor, out: Tensor) -> None:
    """Values of packed indices, uint8 [n, bytes]: each 16 bytes hold 32, low nibbles first."""
    groups = out.view(out.shape[0], -1, 2, 16)
    packed = words(indices)
    for nibble in range(2):
        # Two indices at a time, one in each byte: half the look-ups.
        pairs = field(packed, 4 * nibble, 4).view(torch.int16).to(torch.int32).flatten()
        values = _pair_table(indices.device).index_select(0, pairs).view(torch.int8)
        groups[:, :, nibble].copy_(values.view(groups[:, :, nibble].shape))


@lru_cache(maxsize=16)
def _pair_table(device: torch.device) -> Tensor:
    """int16: at low + 256 * high the values of both indices, as two int8 in that order."""
    # Under inference mode the table would be an inference tensor for ever.
    with torch.inference_mode(False):
        values = torch.tensor(VALUES, dtype=torch.int8)
        table = torch.zeros(16, 256, 2, dtype=torch.int8)
        table[:, :16, 0] = values
        table[:, :16, 1] = values[:, None]
        return table.view(torch.int16).flatten().to(device)
