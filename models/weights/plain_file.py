"""One file of weights that are plain numbers: safetensors, or what `torch.save` writes (`.pth`).

A path comes in; names with mapped tensors, or with shapes alone, go out. A `.pth` file is read as
data only: no code in it is run.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from models.errors import CheckpointError
from models.weights.safetensors_folder import read_tensors
from models.weights.safetensors_header import read_shapes

PICKLE = ".pth"


def plain_tensors(path: Path) -> Iterable[tuple[str, Tensor]]:
    """Name and mapped tensor of everything in one file.

    Raises CheckpointError naming the file when it is missing or damaged or holds anything else, and
    what `read_tensors` raises.
    """
    return _read_pickle(path).items() if path.suffix == PICKLE else read_tensors(path)


def plain_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in one file, by name. Raises as `plain_tensors` does."""
    if path.suffix == PICKLE:
        return {name: tuple(tensor.shape) for name, tensor in _read_pickle(path).items()}
    return read_shapes(path)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: cannot be read as a file of tensors: {reason}") from error
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(f"{path}: holds something other than named tensors")
    return content
