"""The types of a GGUF file whose numbers are stored as they are, and what torch calls them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from models.weights.gguf.format import QuantType

PLAIN_DTYPES: Mapping[QuantType, torch.dtype] = {
    QuantType.F32: torch.float32,
    QuantType.F16: torch.float16,
    QuantType.BF16: torch.bfloat16,
}
