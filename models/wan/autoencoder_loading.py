"""An autoencoder from files: a folder of diffusers, or one file in either layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.errors import CheckpointError
from models.wan.autoencoder import WanAutoencoder
from models.wan.autoencoder_config import WanAutoencoderConfig, infer_config
from models.wan.autoencoder_names import count_res_blocks, to_diffusers
from models.weights.json_file import read_json_object
from models.weights.plain_file import plain_shapes, plain_tensors
from models.weights.safetensors_folder import fill_module, weight_files
from models.weights.shards import shard_files
from models.weights.skeleton import skeleton


def load_autoencoder(
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
) -> WanAutoencoder:
    """The autoencoder at `path`, frozen: a folder, or a `.safetensors` or `.pth` file.

    `variant` chooses among the copies in a folder. Raises CheckpointError and
    UnsupportedCheckpoint, one line that names the file and the tensors or the option at fault. A
    `.pth` file is read as data only; no code in it is run.
    """
    config = None
    files = _files(path, variant)
    if path.is_dir():
        config_path = path / "config.json"
        try:
            config = WanAutoencoderConfig.from_json(read_json_object(config_path))
        except (CheckpointError, TypeError, ValueError) as error:
            raise type(error)(_named(config_path, error)) from error
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(plain_tensors(file))
    blocks = count_res_blocks(list(tensors))
    tensors = {to_diffusers(name, blocks): tensor for name, tensor in tensors.items()}
    if config is None:
        try:
            config = infer_config({name: tuple(t.shape) for name, t in tensors.items()})
        except CheckpointError as error:
            raise type(error)(f"{path}: {error}") from error
    with skeleton():
        autoencoder = WanAutoencoder(config)
    fill_module(autoencoder, tensors, where=path, device=device, dtype=dtype)
    return autoencoder


def autoencoder_shapes(path: Path, variant: str | None = None) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that `load_autoencoder` would load, by its name in the file.

    Raises CheckpointError as that does.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _files(path, variant):
        shapes.update(plain_shapes(file))
    return shapes


def _files(path: Path, variant: str | None) -> tuple[Path, ...]:
    return weight_files(path, variant) if path.is_dir() else shard_files(path)


def _named(path: Path, error: Exception) -> str:
    text = str(error)
    return text if text.startswith(str(path)) else f"{path}: {text}"
