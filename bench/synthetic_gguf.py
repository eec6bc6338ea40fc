"""Wan-VACE files of full size without a download: true names, shapes and types, random blocks.

A configuration and a file type come in; a GGUF file like those of the community goes out, and the
configuration again in diffusers' form, for programs that cannot tell it from the file. Blocks are
drawn, not quantised: random bytes whose scale fields are set to what makes weights of about the
size of trained ones, so that a model of any depth stays finite. Memory holds one tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.wan.gguf_convert import ARCHITECTURE
from models.wan.gguf_recipe import tensor_type
from models.wan.transformer_config import WanVaceConfig, expected_shapes
from models.weights.gguf.file_type import FileType
from models.weights.gguf.format import BLOCK, QuantType
from models.weights.gguf.plain_types import PLAIN_DTYPES
from models.weights.gguf.writer import PlannedTensor, write_gguf

VACE_1_3B = WanVaceConfig(
    num_heads=12, ffn_dim=8960, num_layers=30, vace_layers=tuple(range(0, 30, 2))
)
VACE_14B = WanVaceConfig()
TINY = WanVaceConfig(num_heads=2, ffn_dim=512, num_layers=2, vace_layers=(0,), text_dim=64)
"""The narrowest model whose rows are whole blocks of every type."""

WEIGHT = 0.02
"""Standard deviation of the weights, about."""

# Where the half-precision factors of a block lie, in halves, and the value of each that makes
# weights of deviation one. What is added or taken away makes the mean zero.
_FACTORS: dict[QuantType, dict[int, float]] = {
    QuantType.Q4_0: {0: 1 / 4.6},
    QuantType.Q4_1: {0: 1 / 4.6, 1: -7.5 / 4.6},
    QuantType.Q5_0: {0: 1 / 9.2},
    QuantType.Q5_1: {0: 1 / 9.2, 1: -15.5 / 9.2},
    QuantType.Q8_0: {0: 1 / 74},
    QuantType.Q2_K: {40: 1 / 14, 41: 1.5 / 14},
    QuantType.Q3_K: {54: 1 / 43},
    QuantType.Q4_K: {0: 1 / 250, 1: 7.5 / 250},
    QuantType.Q5_K: {0: 1 / 520, 1: 15.5 / 520},
    QuantType.Q6_K: {104: 1 / 1360},
    QuantType.IQ4_NL: {0: 1 / 70},
    QuantType.IQ4_XS: {0: 1 / 1300},
}


def planned_tensors(config: WanVaceConfig, file_type: FileType) -> list[PlannedTensor]:
    """Every tensor of the model under its original name, in the type the community's files have."""
    return [
        PlannedTensor(name, shape, tensor_type(file_type, name, shape))
        for name, shape in expected_shapes(config).items()
    ]


def random_blocks(tensor: PlannedTensor, random: np.random.Generator) -> Tensor:
    """Bytes of one tensor, uint8 [nbytes].

    Plain numbers are normal around zero, those of norms around one.
    """
    if tensor.type in PLAIN_DTYPES:
        center = float(".norm" in tensor.name and tensor.name.endswith(".weight"))
        values = random.standard_normal(tensor.elements, np.float32) * WEIGHT + center
        return torch.from_numpy(values).to(PLAIN_DTYPES[tensor.type]).view(torch.uint8)
    _, size = BLOCK[tensor.type]
    words = random.integers(0, 2**64 - 1, -(-tensor.nbytes // 8), np.uint64, endpoint=True)
    data = torch.from_numpy(words.view(np.uint8)[: tensor.nbytes])
    halves = data.view(-1, size).view(torch.float16)
    for place, factor in _FACTORS[tensor.type].items():
        halves[:, place] = factor * WEIGHT
    return data


def write_random_model(
    path: Path, config: WanVaceConfig, file_type: FileType, *, seed: int = 0
) -> None:
    """Write the file, tensor by tensor. Raises CheckpointError when the disk has no room for it."""
    random = np.random.Generator(np.random.SFC64(seed))
    plan = planned_tensors(config, file_type)

    def blocks() -> Iterator[Tensor]:
        for tensor in plan:
            yield random_blocks(tensor, random)

    write_gguf(path, plan, blocks(), architecture=ARCHITECTURE, file_type=file_type)


def diffusers_config(config: WanVaceConfig) -> dict[str, object]:
    """The `config.json` of diffusers' class for the same model."""
    return {
        "_class_name": "WanVACETransformer3DModel",
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "vace_layers": list(config.vace_layers),
        "vace_in_channels": config.vace_in_channels,
        "patch_size": list(config.patch_size),
    }


def write_diffusers_config(folder: Path, config: WanVaceConfig) -> Path:
    """Leave that `config.json` in `folder`, where `from_single_file` looks for it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(diffusers_config(config)), encoding="utf-8")
    return folder
