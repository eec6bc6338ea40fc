"""GGUF files of tiny Wan VACE transformers, with the names and types that shared files have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np

from models.wan.transformer_config import WanVaceConfig, expected_shapes

CONFIG = WanVaceConfig(
    num_heads=2,
    ffn_dim=512,
    num_layers=4,
    vace_layers=(0, 2),
    text_dim=64,
    freq_dim=32,
)


def write_wan(
    path: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    rename: Callable[[str], str] = str,
    architecture: str = "wan",
) -> dict[str, int]:
    """Zeros under the names of a tiny transformer, matrices of blocks in Q8_0, others in F32.

    Returns the bytes of each tensor by name.
    """
    writer = gguf.GGUFWriter(path, architecture)
    sizes = {}
    for name, shape in (expected_shapes(CONFIG) if shapes is None else shapes).items():
        if len(shape) == 2 and "blocks." in name:
            data = np.zeros((shape[0], shape[1] // 32 * 34), np.uint8)
            writer.add_tensor(rename(name), data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            data = np.zeros(shape, np.float32)
            writer.add_tensor(rename(name), data)
        sizes[name] = data.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sizes
