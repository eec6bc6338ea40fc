"""Names of models to what they offer: bundled ids and checkpoint folders in, `ModelSpec`s out.

The API process validates requests against these and the worker loads what they point at, so that
both read the same limits from the same folder. Only configuration files are opened here; nothing
imports torch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from config.model_spec import ModelSpec
from models.errors import CheckpointError
from models.samplers import SAMPLERS
from models.sana.checkpoint import PIXELS_PER_LATENT, SanaCheckpoint
from models.weights.json_file import read_json_object

log = logging.getLogger(__name__)

BUNDLED: tuple[str, ...] = ("sana-demo",)
"""Ids of the models that are part of this package."""

OVERRIDES_FILE = "denoised.json"
"""Optional file of a checkpoint folder that replaces fields of the spec derived from it."""

_BUNDLED_FOLDER = Path(__file__).parent / "demo"


def discover(names: Sequence[str]) -> tuple[ModelSpec, ...]:
    """The specs of `names`, in order; a name is a bundled id or the path of a diffusers folder.

    A folder that `describe` refuses is logged and left out, so that the other models can be served.
    Raises CheckpointError in one line when that leaves none, when a name is neither an id nor a
    folder, or when two names lead to the same id.
    """
    specs: dict[str, ModelSpec] = {}
    refused: list[CheckpointError] = []
    for name in names:
        folder = _folder_of(name)
        try:
            spec = describe(folder)
        except CheckpointError as error:
            refused.append(error)
            continue
        if (other := specs.get(spec.id)) is not None:
            raise CheckpointError(
                f"model id {spec.id!r} is used by both {other.source} and {spec.source}; "
                f"give one another id in its {OVERRIDES_FILE}"
            )
        specs[spec.id] = spec
    if refused and not specs:
        raise refused[0]
    for error in refused:
        log.error("model cannot be served: %s", error)
    return tuple(specs.values())


def describe(folder: Path) -> ModelSpec:
    """The spec of the checkpoint in `folder`, with the overrides of its `denoised.json`.

    Without overrides the id is the folder's name, the default size the one trained for, and the
    limits a factor of two around it, which is what the published aspect ratios span. Raises
    CheckpointError in one line when a configuration file is missing or broken, and
    UnsupportedCheckpoint when the model is of a kind that is not implemented.
    """
    checkpoint = SanaCheckpoint.read(folder)
    grid = PIXELS_PER_LATENT * checkpoint.transformer.patch_size
    side = checkpoint.transformer.sample_size * PIXELS_PER_LATENT
    size = {
        "default": side,
        "minimum": max(grid, side // 2 // grid * grid),
        "maximum": side * 2,
        "multiple_of": grid,
    }
    fields: dict[str, Any] = {
        "id": _id_of(folder),
        "family": "sana",
        "width": size,
        "height": size,
        "num_inference_steps": {"default": 20, "minimum": 1, "maximum": 100},
        "guidance_scale": {"default": 4.5, "minimum": 1.0, "maximum": 20.0},
        "samplers": (
            checkpoint.sampler,
            *(name for name in SAMPLERS if name != checkpoint.sampler),
        ),
        "source": folder,
    }
    path = folder / OVERRIDES_FILE
    if path.exists():
        _override(fields, path)
    culprit = path if path.exists() else folder
    try:
        spec = ModelSpec.model_validate(fields)
    except ValidationError as error:
        raise CheckpointError(f"{culprit}: {_first_problem(error)}") from None
    for field, parameter in (("width", spec.width), ("height", spec.height)):
        if parameter.multiple_of % grid:
            raise CheckpointError(
                f"{culprit}: {field}.multiple_of: {parameter.multiple_of} is not a multiple of "
                f"{grid}"
            )
    if unknown := [name for name in spec.samplers if name not in SAMPLERS]:
        raise CheckpointError(
            f"{culprit}: samplers: {unknown[0]!r} is unknown, supported: {', '.join(SAMPLERS)}"
        )
    return spec


def _folder_of(name: str) -> Path:
    if name in BUNDLED:
        return _BUNDLED_FOLDER / name
    folder = Path(name).expanduser()
    if not folder.is_dir():
        bundled = ", ".join(BUNDLED)
        raise CheckpointError(
            f"{name!r} is neither a bundled model ({bundled}) nor a checkpoint folder"
        )
    return folder.resolve()


def _id_of(folder: Path) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower())
    return name.strip("._-")[:64]


def _override(fields: dict[str, Any], path: Path) -> None:
    """Replace entries of `fields` by those of the file; a parameter's entries one by one."""
    for key, value in read_json_object(path).items():
        if key not in ModelSpec.model_fields or key == "source":
            raise CheckpointError(f"{path}: unknown field {key!r}")
        if isinstance(value, Mapping) and isinstance(fields.get(key), Mapping):
            value = {**fields[key], **value}
        fields[key] = value


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']} (found {problem['input']!r})"
