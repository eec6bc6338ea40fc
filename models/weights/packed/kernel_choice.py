"""Which code multiplies by a packed weight: a pure function of device, batch and block type."""

from __future__ import annotations

import importlib.util
import os
import shutil
from enum import StrEnum
from functools import cache

import torch

from models.weights.gguf.format import BLOCK, QuantType
from models.weights.gguf.plain_types import PLAIN_DTYPES

FUSED_ROWS = 64
"""Up to so many rows of input, reading the packed weight is all the work there is."""


class Kernel(StrEnum):
    """Ways from a packed weight to a product."""

    VIEW = "view"
    """The stored numbers are the ones to compute with."""
    TORCH = "torch"
    """Dequantise with torch operators, then multiply."""
    TILED = "tiled"
    """Dequantise a few rows with torch operators and multiply by them while the cache has them."""
    TRITON = "triton"
    """Dequantise with one kernel, then multiply."""
    FUSED = "fused"
    """Dequantise in registers while multiplying: the weight never reaches memory in full."""


def choose_kernel(
    type: QuantType, dtype: torch.dtype, rows: int | None, *, device_type: str, triton: bool
) -> Kernel:
    """The fastest correct way for `rows` rows of input in `dtype`; None: for the weight alone.

    Many rows make the product itself the cost, and the vendor's matrix product beats ours; a few
    rows make reading the weight the cost, so that it should be read once and in its packed form.
    """
    if PLAIN_DTYPES.get(type) is dtype:
        return Kernel.VIEW
    few = rows is not None and rows <= FUSED_ROWS
    if device_type == "cpu" and few:
        return Kernel.TILED
    if device_type != "cuda" or not triton or BLOCK[type][0] == 1:
        return Kernel.TORCH
    return Kernel.FUSED if few else Kernel.TRITON


@cache
def has_triton() -> bool:
    """Whether Triton is installed, and the C compiler it needs on a machine; it is not imported.

    Small container images have Triton, which comes with torch, but no compiler.
    """
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return compiler is not None and importlib.util.find_spec("triton") is not None
