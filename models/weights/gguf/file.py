"""A GGUF file, mapped once and read-only: tensors are views of the map, nothing is copied.

The header is checked first, by `read_header`; only then is the file mapped. Pages come from the
disk when a tensor is first read and belong to the page cache, which all processes of a machine
share. Two things follow from the map: views must not be written to, and a file must not be made
shorter while it is in use, for then the process is killed.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from models.errors import CheckpointError
from models.weights.gguf.format import BLOCK
from models.weights.gguf.header import GgufHeader, open_gguf
from models.weights.gguf.packed_tensor import PackedTensor
from models.weights.gguf.tensor_records import TensorInfo


class GgufFile:
    """An open file; use `open`, and close it or use it as a context manager.

    `tensors` maps names, as the file has them, to what is known of each tensor.
    """

    def __init__(self, path: Path, header: GgufHeader, content: Tensor) -> None:
        self.path = path
        self.header = header
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {tensor.name: tensor for tensor in header.tensors}
        )
        self._content: Tensor | None = content

    @classmethod
    def open(cls, path: Path) -> Self:
        """Check and map the file at `path`.

        Raises CheckpointError naming the file when it cannot be read or is not a sound GGUF file.
        """
        with open_gguf(path) as (handle, header, file_size):
            try:
                # With the checked length: should the file have become shorter, this fails.
                mapped = mmap.mmap(handle.fileno(), file_size, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: cannot be mapped: {error}") from error
        with warnings.catch_warnings():
            # torch warns that nothing keeps callers from writing to a read-only buffer.
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            content = torch.frombuffer(mapped, dtype=torch.uint8)
        return cls(path, header, content)

    def raw(self, name: str) -> Tensor:
        """The bytes of one tensor: a read-only uint8 view [nbytes] of the map.

        Raises CheckpointError when the file has no such tensor, ValueError when it is closed.
        """
        info = self._info(name)
        if self._content is None:
            raise ValueError(f"{self.path} is closed")
        return self._content[info.offset : info.offset + info.nbytes]

    def packed(self, name: str) -> PackedTensor:
        """One matrix in its blocks: a read-only view of the map, one row of blocks for each row.

        Raises CheckpointError as `raw` does, and when the tensor has not two dimensions or its rows
        are no whole number of blocks.
        """
        info = self._info(name)
        elements, nbytes = BLOCK[info.type]
        if len(info.shape) != 2 or info.shape[1] % elements:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} of type {info.type.name} has shape "
                f"{list(info.shape)}, expected a matrix with rows of whole blocks of {elements}"
            )
        rows, columns = info.shape
        data = self.raw(name).view(rows, columns // elements * nbytes)
        return PackedTensor(data, info.type, (rows, columns))

    def close(self) -> None:
        """Let go of the map. It goes when the last view of it does, so that views stay sound."""
        self._content = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: has no tensor {name!r}") from None
