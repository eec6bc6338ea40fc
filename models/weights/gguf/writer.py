"""GGUF files out: the plan of all tensors first, then their blocks one after the other.

The header of a file says where each tensor will lie, so the plan has to be complete before the
first block is written; the blocks themselves are taken from an iterator and never gathered. The
file grows under another name and gets its own at the very end, so that nobody ever finds half of
it.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor

from models.errors import CheckpointError
from models.weights.gguf.file_type import FileType
from models.weights.gguf.format import BLOCK, DEFAULT_ALIGNMENT, QuantType


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to be written: `shape` in torch's order, any number of dimensions up to five."""

    name: str
    shape: tuple[int, ...]
    type: QuantType

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its blocks, padding not counted."""
        elements, size = BLOCK[self.type]
        return self.elements // elements * size


def write_gguf(
    path: Path,
    plan: Sequence[PlannedTensor],
    blocks: Iterable[Tensor],
    *,
    architecture: str,
    file_type: FileType,
) -> None:
    """Write a GGUF file of version 3 to `path`, in place of one that is there.

    `blocks` gives the tensors' bytes in the order of `plan`: uint8 [..., bytes] as `quantize` makes
    them. Raises CheckpointError when the disk has no room or the file cannot be written, ValueError
    when blocks do not fit the plan. Whatever is raised, by `blocks` too, leaves `path` as it was.
    """
    _require_room(path, plan)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        _write(partial, plan, blocks, architecture, file_type)
        partial.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _write(
    path: Path,
    plan: Sequence[PlannedTensor],
    blocks: Iterable[Tensor],
    architecture: str,
    file_type: FileType,
) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    try:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(int(file_type))
        for tensor in plan:
            writer.add_tensor_info(
                tensor.name,
                _byte_shape(tensor),
                np.dtype(np.uint8),
                tensor.nbytes,
                raw_dtype=gguf.GGMLQuantizationType(int(tensor.type)),
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, data in zip(plan, blocks, strict=True):
            if data.nbytes != tensor.nbytes:
                raise ValueError(
                    f"tensor {tensor.name!r} has {data.nbytes} bytes, planned {tensor.nbytes}"
                )
            writer.write_tensor_data(data.contiguous().numpy())
        for file in writer.fout or ():
            file.flush()
            os.fsync(file.fileno())
    finally:
        writer.close()


def _byte_shape(tensor: PlannedTensor) -> tuple[int, ...]:
    elements, size = BLOCK[tensor.type]
    if not tensor.shape or tensor.shape[-1] % elements:
        raise ValueError(
            f"tensor {tensor.name!r} of shape {list(tensor.shape)} has no rows of whole "
            f"{tensor.type.name} blocks of {elements}"
        )
    return (*tensor.shape[:-1], tensor.shape[-1] // elements * size)


def _require_room(path: Path, plan: Sequence[PlannedTensor]) -> None:
    needed = sum(tensor.nbytes + DEFAULT_ALIGNMENT for tensor in plan)
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error
    if needed > free:
        raise CheckpointError(
            f"{path}: takes {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free on the disk"
        )
