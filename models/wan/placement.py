"""Where a transformer's weights go: sizes of a checkpoint and free memory in, a `Plan` out."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from config.model_spec import ModelSpec, Residency
from models.errors import CheckpointError
from models.wan.checkpoint import WanVaceCheckpoint
from models.wan.latent_shape import PIXELS_PER_LATENT, latent_frames
from models.weights.gguf.header import open_header
from models.weights.gguf.inspection import memory_by_residency
from models.weights.packed.fp8_linear import supports_fp8
from models.weights.residency import Plan, choose_residency

# Activations of a token that live at once, in units of its channels, when rows are doubled for
# guidance: stream, context, norms, queries, keys and values, and the wide middle of one layer.
_LIVE_CHANNELS = 16


def plan_placement(
    spec: ModelSpec, checkpoint: WanVaceCheckpoint, device: torch.device, dtype: torch.dtype
) -> Plan:
    """The residency of the spec's transformer on `device`, as asked for or by free memory.

    Raises CheckpointError, naming the file and the numbers, when nothing fits or the device cannot
    do what was asked for.
    """
    sizes = _weight_bytes(checkpoint.transformer, dtype)
    config = checkpoint.config
    tokens = latent_frames(spec.video.num_frames.default if spec.video else 1)
    tokens *= spec.width.default * spec.height.default // PIXELS_PER_LATENT**2
    tokens //= math.prod(config.patch_size)
    live = _LIVE_CHANNELS * config.dim + 2 * config.ffn_dim
    on_cuda = device.type == "cuda"
    try:
        return choose_residency(
            packed_bytes=sizes["packed"],
            bf16_bytes=sizes["bf16"],
            fp8_bytes=sizes["fp8"],
            activations_bytes=2 * tokens * live * dtype.itemsize,
            free_bytes=torch.cuda.mem_get_info(device)[0] if on_cuda else _free_host_bytes(),
            has_fp8=supports_fp8(device),
            wanted=spec.residency,
            layers=config.num_layers + len(config.vace_layers) if on_cuda else 0,
        )
    except (ValueError, MemoryError) as error:
        raise CheckpointError(f"{checkpoint.transformer}: {error}") from error


def _weight_bytes(transformer: Path, dtype: torch.dtype) -> dict[Residency, int]:
    """Bytes of weights in each mode; unquantised files have only one."""
    if transformer.suffix == ".gguf":
        sizes = memory_by_residency(open_header(transformer).tensors)
        return {**sizes, "bf16": sizes["bf16"] * dtype.itemsize // torch.bfloat16.itemsize}
    folder = transformer if transformer.is_dir() else transformer.parent
    files = folder.glob("*.safetensors") if transformer.is_dir() else (transformer,)
    size = sum(path.stat().st_size for path in files)
    return {"packed": size, "bf16": size, "fp8": size}


def _free_host_bytes() -> int:
    """Memory that can be taken without swapping, counting what caches would give back."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
