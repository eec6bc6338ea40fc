"""What there is to know about a GGUF file before loading it, from its header alone.

A path comes in; what the file holds, how its numbers are stored, whether its tensors are those of
the architecture and how much memory they need in each residency mode come out. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from config.model_spec import Residency
from models.errors import CheckpointError
from models.wan.gguf_identify import Identity, Kind, identify
from models.wan.scaled_tensors import is_marker
from models.wan.transformer_config import (
    WanVaceConfig,
    expected_shapes,
    infer_config,
    unfolded,
)
from models.wan.transformer_names import to_original
from models.weights.gguf.format import BLOCK, QuantType
from models.weights.gguf.header import GgufHeader, open_gguf
from models.weights.gguf.metadata import shown
from models.weights.gguf.tensor_records import TensorInfo

_BF16_BYTES = 2
_FP8_BYTES = 1
_SCALE_BYTES = 4
# As `fits_fp8` has it, which would import torch.
_FP8_MULTIPLE = 16


@dataclass(frozen=True)
class TypeUse:
    """How much of a file is stored in one type."""

    tensors: int
    elements: int
    nbytes: int


@dataclass(frozen=True)
class Architecture:
    """A file's tensors against those of a Wan VACE transformer with the configuration they imply.

    Names are the original ones. `misshapen` gives the shape found and the shape expected.
    """

    config: WanVaceConfig
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Inspection:
    """All of it. `file_bytes` is the length of the file.

    `architecture` is None where the file holds something else, or where `problem`, one line, says
    why its configuration cannot be told. `memory` is bytes of weights in each residency mode.
    """

    file_bytes: int
    header: GgufHeader
    identity: Identity
    types: Mapping[QuantType, TypeUse]
    architecture: Architecture | None
    problem: str | None
    memory: Mapping[Residency, int]


def inspect_gguf(path: Path) -> Inspection:
    """Inspect the file at `path`. Raises CheckpointError when it is not a sound GGUF file."""
    with open_gguf(path) as (_, header, file_bytes):
        identity = identify(header)
    architecture, problem = None, None
    if identity.kind is Kind.WAN_VACE:
        try:
            architecture = _compare(header)
        except CheckpointError as error:
            problem = str(error)
    return Inspection(
        file_bytes=file_bytes,
        header=header,
        identity=identity,
        types=_types(header.tensors),
        architecture=architecture,
        problem=problem,
        memory=memory_by_residency(header.tensors),
    )


def _compare(header: GgufHeader) -> Architecture:
    found: dict[str, tuple[int, ...]] = {}
    for tensor in header.tensors:
        if is_marker(tensor.name):
            continue
        name = to_original(tensor.name)
        if name in found:
            raise CheckpointError(f"tensor {shown(name)} is stored under two names")
        found[name] = tensor.shape
    config = infer_config(found)
    expected = expected_shapes(config)
    found = unfolded(found, expected)
    return Architecture(
        config=config,
        missing=tuple(name for name in expected if name not in found),
        unexpected=tuple(name for name in found if name not in expected),
        misshapen={
            name: (found[name], shape)
            for name, shape in expected.items()
            if name in found and found[name] != shape
        },
    )


def _types(tensors: tuple[TensorInfo, ...]) -> dict[QuantType, TypeUse]:
    used: dict[QuantType, TypeUse] = {}
    for tensor in tensors:
        before = used.get(tensor.type, TypeUse(0, 0, 0))
        used[tensor.type] = TypeUse(
            before.tensors + 1,
            before.elements + math.prod(tensor.shape),
            before.nbytes + tensor.nbytes,
        )
    return dict(sorted(used.items(), key=lambda item: -item[1].nbytes))


def memory_by_residency(tensors: tuple[TensorInfo, ...]) -> dict[Residency, int]:
    """Bytes of weights in each mode when a model computes in bfloat16, to a few per cent.

    Packed, quantised matrices take what they take in the file. In fp8 the matrices of the blocks,
    quantised or not, take a byte for each element and a float32 scale for each row. All the rest
    takes two bytes for each element in every mode, however it is stored.
    """
    packed = bf16 = fp8 = 0
    for tensor in tensors:
        converted = _BF16_BYTES * math.prod(tensor.shape)
        bf16 += converted
        packed += tensor.nbytes if _stays_packed(tensor) else converted
        fp8 += _fp8_bytes(tensor) if _becomes_fp8(tensor) else converted
    return {"packed": packed, "bf16": bf16, "fp8": fp8}


def packed_bytes(tensors: tuple[TensorInfo, ...]) -> int:
    """Bytes of what packed mode leaves as it is in the file, on a CPU in pages of its map."""
    return sum(tensor.nbytes for tensor in tensors if _stays_packed(tensor))


def _stays_packed(tensor: TensorInfo) -> bool:
    elements = BLOCK[tensor.type][0]
    return elements > 1 and len(tensor.shape) == 2 and tensor.shape[1] % elements == 0


def _becomes_fp8(tensor: TensorInfo) -> bool:
    is_matrix = len(tensor.shape) == 2 and "blocks." in tensor.name
    return is_matrix and all(size % _FP8_MULTIPLE == 0 for size in tensor.shape)


def _fp8_bytes(tensor: TensorInfo) -> int:
    return _FP8_BYTES * math.prod(tensor.shape) + _SCALE_BYTES * tensor.shape[0]
