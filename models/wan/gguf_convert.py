"""A Wan-VACE transformer in safetensors becomes a GGUF file with original names.

Tensors are mapped, quantised and written one at a time: beside the map, memory holds the blocks of
two at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.errors import CheckpointError
from models.wan.gguf_recipe import tensor_type
from models.wan.shared_files import kinds_in, only_transformer
from models.wan.transformer_config import (
    WanVaceConfig,
    expected_shapes,
    infer_config,
    unfolded,
)
from models.wan.transformer_names import to_original
from models.wan.transformer_tensors import StoredTensor, stored_tensors
from models.weights.gguf.file_type import FileType
from models.weights.gguf.format import QuantType
from models.weights.gguf.quantize import QuantizationError, quantize
from models.weights.gguf.writer import PlannedTensor, write_gguf
from models.weights.json_file import read_json_object
from models.weights.safetensors_folder import offers_weights

ARCHITECTURE = "wan"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Conversion:
    """What was done: bytes of the tensors read, bytes of the file, tensors of each type."""

    source_bytes: int
    file_bytes: int
    types: Mapping[QuantType, int]


def convert_to_gguf(
    source: Path,
    destination: Path,
    file_type: FileType,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Conversion:
    """Write the transformer at `source` to `destination`, quantised by the recipe of `file_type`.

    `source` is a safetensors file, a folder of them (shards too, with or without an index; other
    parts of the model may lie beside them), or a diffusers folder whose `transformer` is taken;
    names may be original, prefixed or those of diffusers. A `config.json`
    beside the weights is followed, otherwise the shapes tell the configuration. `progress` gets
    elements done and in all. Raises CheckpointError, one line naming file and tensor, when the
    source is no whole Wan-VACE transformer, a value cannot be stored, or the file not be written.
    """
    weights = _weights(source)
    tensors = _named(weights)
    expected = expected_shapes(_config(weights, tensors))
    _check(weights, tensors, expected)
    plan = [
        PlannedTensor(name, shape, tensor_type(file_type, name, shape))
        for name, shape in expected.items()
    ]
    total = sum(tensor.elements for tensor in plan)

    def blocks() -> Iterator[Tensor]:
        done = 0
        for planned in plan:
            stored = tensors[planned.name]
            try:
                numbers = stored.dense(stored.plain_dtype or torch.float32, _CPU)
                yield quantize(numbers.reshape(planned.shape), planned.type)
            except QuantizationError as error:
                raise CheckpointError(f"{weights}: tensor {stored.name!r}: {error}") from error
            done += planned.elements
            progress(done, total)

    write_gguf(destination, plan, blocks(), architecture=ARCHITECTURE, file_type=file_type)
    return Conversion(
        source_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        file_bytes=destination.stat().st_size,
        types=dict(Counter(tensor.type for tensor in plan).most_common()),
    )


def _weights(source: Path) -> Path:
    """The file or folder with the transformer itself."""
    if source.suffix == ".gguf":
        raise CheckpointError(f"{source}: is a GGUF file, expected safetensors")
    inner = source / "transformer"
    if source.is_dir():
        folder = inner if inner.is_dir() else source
        if offers_weights(folder):
            return folder
        return only_transformer(folder, kinds_in(folder, (".safetensors",)))
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file or folder")
    return source


def _named(weights: Path) -> dict[str, StoredTensor]:
    """The tensors under their original names."""
    tensors: dict[str, StoredTensor] = {}
    for tensor in stored_tensors(weights, None):
        name = to_original(tensor.name)
        if name in tensors:
            raise CheckpointError(
                f"{weights}: tensors {tensors[name].name!r} and {tensor.name!r} are both {name!r}"
            )
        tensors[name] = tensor
    return tensors


def _config(weights: Path, tensors: Mapping[str, StoredTensor]) -> WanVaceConfig:
    path = (weights if weights.is_dir() else weights.parent) / "config.json"
    config = read_json_object(path) if path.is_file() else {}
    # The configuration of the original release has other keys and says less than the shapes.
    told = "num_attention_heads" in config
    try:
        if told:
            return WanVaceConfig.from_json(config)
        return infer_config({name: tensor.shape for name, tensor in tensors.items()})
    except CheckpointError as error:
        raise type(error)(f"{path if told else weights}: {error}") from error


def _check(
    weights: Path, tensors: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]]
) -> None:
    found = unfolded({name: tensor.shape for name, tensor in tensors.items()}, expected)
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(f"{weights}: lacks tensor {name!r} of the architecture")
        if found[name] != shape:
            raise CheckpointError(
                f"{weights}: tensor {tensors[name].name!r} has shape "
                f"{list(tensors[name].shape)}, expected {list(shape)}"
            )
    for name, tensor in tensors.items():
        if name not in expected:
            raise CheckpointError(
                f"{weights}: tensor {tensor.name!r} is unknown to the architecture"
            )
