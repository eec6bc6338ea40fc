"""Names and shapes of the tensors in one safetensors file, read without torch."""

from __future__ import annotations

from pathlib import Path

from models.errors import CheckpointError


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the file at `path`, by name.

    Raises CheckpointError naming the file when it is missing, damaged or truncated.
    """
    # Loading the library takes longer than reading most models' configuration.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as handle:
            return {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged or truncated safetensors file: {reason}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
