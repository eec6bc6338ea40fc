"""The tensors of a file, of whatever kind it is, as loading sees them: described, not yet read.

A mapped GGUF file, safetensors or `.pth` come in; one `StoredTensor` for each tensor goes out,
which turns into numbers, or into quantised blocks, on demand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from models.errors import CheckpointError
from models.wan.scaled_tensors import is_marker, with_scales
from models.weights.gguf.dequantize import dequantize
from models.weights.gguf.file import GgufFile
from models.weights.gguf.format import BLOCK
from models.weights.gguf.packed_tensor import PackedTensor
from models.weights.gguf.plain_types import PLAIN_DTYPES
from models.weights.gguf.tensor_records import TensorInfo
from models.weights.plain_file import plain_tensors
from models.weights.safetensors_folder import weight_files
from models.weights.shards import shard_files


class StoredTensor(ABC):
    """One tensor of a file, where it takes `nbytes`.

    `plain_dtype` is None where its numbers are quantised, or are to be scaled.
    """

    name: str
    shape: tuple[int, ...]
    plain_dtype: torch.dtype | None
    nbytes: int

    @abstractmethod
    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The numbers in `dtype`; on a CPU a read-only view where the file holds just those."""

    def packed(self, device: torch.device) -> PackedTensor | None:
        """The quantised blocks, or None where there are none that make a matrix."""
        return None


class _GgufTensor(StoredTensor):
    def __init__(self, file: GgufFile, info: TensorInfo) -> None:
        self.name, self.shape, self.nbytes = info.name, info.shape, info.nbytes
        self.plain_dtype = PLAIN_DTYPES.get(info.type)
        self._file, self._type = file, info.type

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        raw = self._file.raw(self.name)
        if self.plain_dtype is None:
            # Blocks travel to the device as they are: they are smaller than numbers.
            return dequantize(raw.to(device), self._type, dtype=dtype).view(self.shape)
        aligned = raw if raw.storage_offset() % self.plain_dtype.itemsize == 0 else raw.clone()
        return aligned.view(self.plain_dtype).view(self.shape).to(device, dtype)

    def packed(self, device: torch.device) -> PackedTensor | None:
        elements = BLOCK[self._type][0]
        if self.plain_dtype is not None or len(self.shape) != 2 or self.shape[1] % elements:
            return None
        packed = self._file.packed(self.name)
        return PackedTensor(packed.data.to(device), packed.type, packed.shape)


class _PlainTensor(StoredTensor):
    def __init__(self, name: str, tensor: Tensor, scale: Tensor | None) -> None:
        self.name, self.shape, self.nbytes = name, tuple(tensor.shape), tensor.nbytes
        self.plain_dtype = tensor.dtype if scale is None else None
        self._tensor, self._scale = tensor, scale

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        if self._scale is None:
            return self._tensor.to(device, dtype)
        return (self._tensor.to(device).float() * self._scale.to(device)).to(dtype)


def gguf_tensors(file: GgufFile) -> Iterator[StoredTensor]:
    """Every tensor of an open file that is a weight."""
    for info in file.tensors.values():
        if not is_marker(info.name):
            yield _GgufTensor(file, info)


def stored_tensors(
    path: Path, variant: str | None, *, ignored: tuple[str, ...] = ()
) -> Iterator[StoredTensor]:
    """Every weight of a safetensors file and its other shards, of a `.pth` file, or of the
    safetensors files in a folder, whose name does not begin with one of `ignored`.

    Weights that have a scale of their own are what the scale makes of them. Raises CheckpointError
    naming the file when one is missing, damaged, or holds whole numbers, or when a scale is at
    fault.
    """
    files = weight_files(path, variant) if path.is_dir() else shard_files(path)
    tensors = [
        (name, tensor)
        for file in files
        for name, tensor in plain_tensors(file)
        if not name.startswith(ignored)
    ]
    try:
        for name, tensor, scale in with_scales(tensors):
            if not tensor.is_floating_point():
                raise CheckpointError(
                    f"tensor {name!r} holds {tensor.dtype}, expected floating-point numbers"
                )
            yield _PlainTensor(name, tensor, scale)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error
