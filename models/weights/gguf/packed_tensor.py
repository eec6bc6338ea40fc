"""A matrix as it lies in a GGUF file: rows of quantised blocks, often a view of the map."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.weights.gguf.format import QuantType


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """Blocks of type `type` that make a matrix of shape (rows, columns) when dequantised.

    `data` is uint8 [rows, bytes per row]; it may be a read-only map and must not be written to.
    """

    data: Tensor
    type: QuantType
    shape: tuple[int, int]
