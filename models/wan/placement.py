"""Where a transformer's weights go: sizes of a checkpoint and free memory in, a `Plan` out."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from config.model_spec import ModelSpec, Residency
from models.errors import CheckpointError
from models.wan.autoencoder_loading import autoencoder_shapes
from models.wan.checkpoint import WanVaceCheckpoint
from models.wan.gguf_inspection import memory_by_residency, packed_bytes
from models.wan.step_memory import clip_tokens, step_bytes
from models.wan.transformer_config import expected_shapes
from models.wan.umt5_config import EMBEDDING
from models.wan.umt5_names import UNUSED, to_transformers
from models.weights.gguf.header import open_header
from models.weights.host_memory import available_host_bytes
from models.weights.packed.fp8_linear import supports_fp8
from models.weights.plain_file import plain_shapes
from models.weights.residency import Plan, choose_residency
from models.weights.safetensors_folder import weight_files
from models.weights.shards import shard_files

_REMEDY = (
    'smaller defaults of width, height or num_frames in denoised.json, or "residency": "packed" '
    "there, need less"
)


def plan_placement(
    spec: ModelSpec, checkpoint: WanVaceCheckpoint, device: torch.device, dtype: torch.dtype
) -> Plan:
    """The residency of the spec's transformer on `device`, as asked for or by free memory.

    Nothing of the model is loaded yet: room is left for the text encoder and the autoencoder. On a
    CPU, what stays packed in a mapped file takes no memory that the kernel could not have back.
    Raises CheckpointError, naming the file and the numbers, when nothing fits or the device cannot
    do what was asked for.
    """
    config = checkpoint.config
    on_cuda = device.type == "cuda"
    sizes, mapped = _weight_bytes(checkpoint, dtype)
    tokens = clip_tokens(
        config,
        width=spec.width.default,
        height=spec.height.default,
        num_frames=spec.video.num_frames.default if spec.video else 1,
    )
    free = torch.cuda.mem_get_info(device)[0] if on_cuda else available_host_bytes()
    beside = _text_encoder_bytes(
        checkpoint.text_encoder, dtype, spec.variant, is_mapped=not on_cuda
    )
    beside += _autoencoder_bytes(checkpoint.autoencoder, spec.variant)
    try:
        return choose_residency(
            packed_bytes=sizes["packed"],
            bf16_bytes=sizes["bf16"],
            fp8_bytes=sizes["fp8"],
            mapped_bytes=0 if on_cuda else mapped,
            activations_bytes=step_bytes(config, tokens, dtype.itemsize),
            free_bytes=max(0, free - beside),
            has_fp8=supports_fp8(device),
            wanted=spec.residency,
            layers=config.num_layers + len(config.vace_layers) if on_cuda else 0,
        )
    except MemoryError as error:
        remedy = f"; {_REMEDY}" if on_cuda and spec.residency is None else ""
        raise CheckpointError(
            f"{checkpoint.transformer}: {error} beside {beside / 1e9:.1f} GB of text encoder and "
            f"autoencoder{remedy}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.transformer}: {error}") from error


def resting_form(checkpoint: WanVaceCheckpoint, mode: Residency, dtype: torch.dtype) -> str:
    """What a loaded transformer reports as its residency.

    The mode where it made a difference, else the name of the dtype: files without quantised weights
    have nothing to leave packed, and "bf16" stands for whatever the activations are.
    """
    if mode == "fp8" or (mode == "packed" and checkpoint.transformer.suffix == ".gguf"):
        return mode
    return "bf16" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch.")


def _weight_bytes(
    checkpoint: WanVaceCheckpoint, dtype: torch.dtype
) -> tuple[dict[Residency, int], int]:
    """Bytes of the transformer's weights in each mode, and how many of the packed ones stay as they
    are in the file; unquantised files have nothing packed.
    """
    if checkpoint.transformer.suffix == ".gguf":
        tensors = open_header(checkpoint.transformer).tensors
        sizes, packed = memory_by_residency(tensors), packed_bytes(tensors)
        # What is converted counts as bfloat16 there.
        wider = dtype.itemsize / torch.bfloat16.itemsize
        sizes["packed"] = packed + int((sizes["packed"] - packed) * wider)
        sizes["bf16"] = int(sizes["bf16"] * wider)
        return sizes, packed
    plain = fp8 = 0
    for name, shape in expected_shapes(checkpoint.config).items():
        size = math.prod(shape) * dtype.itemsize
        plain += size
        fp8 += size // dtype.itemsize if "blocks." in name and len(shape) == 2 else size
    return {"packed": plain, "bf16": plain, "fp8": fp8}, 0


def _text_encoder_bytes(
    path: Path, dtype: torch.dtype, variant: str | None, *, is_mapped: bool
) -> int:
    """Bytes of the encoder on the device, where its embedding table does not go.

    `is_mapped`: without the matrices that stay packed, which are pages of the file there.
    """
    if path.suffix == ".gguf":
        tensors = tuple(info for info in open_header(path).tensors if _is_on_device(info.name))
        return sum(info.nbytes for info in tensors) - (packed_bytes(tensors) if is_mapped else 0)
    files = weight_files(path, variant) if path.is_dir() else shard_files(path)
    shapes = [item for file in files for item in plain_shapes(file).items()]
    elements = sum(math.prod(shape) for name, shape in shapes if _is_on_device(name))
    size: int = elements * dtype.itemsize
    return size


def _is_on_device(name: str) -> bool:
    return not name.startswith(UNUSED) and to_transformers(name) != EMBEDDING


def _autoencoder_bytes(path: Path, variant: str | None) -> int:
    """Bytes of the autoencoder, which computes in float32 whatever the file holds."""
    shapes = autoencoder_shapes(path, variant).values()
    return sum(math.prod(shape) for shape in shapes) * torch.float32.itemsize
