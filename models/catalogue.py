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
from models.fake import spec as fake_spec
from models.samplers import SAMPLERS
from models.sana import spec as sana_spec
from models.wan import spec as wan_spec
from models.wan.checkpoint import WanVaceCheckpoint
from models.weights.json_file import read_json_object

log = logging.getLogger(__name__)

BUNDLED: Mapping[str, str] = {
    "sana-demo": "sana-demo",
    "wan-vace-demo": "wan/wan-vace-demo",
    "wan-vace-demo-q8_0": "wan/wan-vace-demo/wan-vace-demo-Q8_0.gguf",
    "wan-vace-demo-q4_k_m": "wan/wan-vace-demo/wan-vace-demo-Q4_K_M.gguf",
    "fake": "fake",
}
"""Ids of the models that are part of this package, and where they lie in its demo folder."""

OVERRIDES_FILE = "denoised.json"
"""Optional file of a checkpoint folder that replaces fields of the spec derived from it."""

_BUNDLED_FOLDER = Path(__file__).parent / "demo"


def discover(names: Sequence[str]) -> tuple[ModelSpec, ...]:
    """The specs of `names`, in order; a name is a bundled id, the path of a
    checkpoint folder or that of a GGUF transformer.

    A folder that `describe` refuses is logged and left out, so that the other models can be served.
    Raises CheckpointError in one line when that leaves none, when a name is neither an id nor a
    folder, or when two names lead to the same id.
    """
    specs: dict[str, ModelSpec] = {}
    refused: list[CheckpointError] = []
    for name in names:
        source = _source_of(name)
        try:
            spec = describe(source)
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
    for reason in refused:
        log.error("model cannot be served: %s", reason)
    return tuple(specs.values())


def describe(source: Path) -> ModelSpec:
    """The spec of the checkpoint at `source`, with the overrides of its `denoised.json`.

    `source` is a folder, or a GGUF transformer with the model's other parts beside it. Without
    overrides the id is its name; a GGUF file always has its own. Raises CheckpointError in one line
    when a file is missing or broken, and UnsupportedCheckpoint when the model is of a kind that is
    not implemented.
    """
    is_file = not source.is_dir()
    if not is_file and fake_spec.is_at(source):
        fields = fake_spec.spec_fields()
    elif is_file or WanVaceCheckpoint.is_at(source):
        fields = wan_spec.spec_fields(source)
    else:
        fields = sana_spec.spec_fields(source)
    grids = {name: fields[name]["multiple_of"] for name in ("width", "height")}
    fields |= {"id": _id_of(source), "source": source}
    path = (source.parent if is_file else source) / OVERRIDES_FILE
    if path.exists():
        _override(fields, path)
    if is_file:
        fields["id"] = _id_of(source)
    culprit = path if path.exists() else source
    try:
        spec = ModelSpec.model_validate(fields)
    except ValidationError as error:
        raise CheckpointError(f"{culprit}: {_first_problem(error)}") from None
    for field, parameter in (("width", spec.width), ("height", spec.height)):
        if parameter.multiple_of % grids[field]:
            raise CheckpointError(
                f"{culprit}: {field}.multiple_of: {parameter.multiple_of} is not a multiple of "
                f"{grids[field]}"
            )
    if unknown := [name for name in spec.samplers if name not in SAMPLERS]:
        raise CheckpointError(
            f"{culprit}: samplers: {unknown[0]!r} is unknown, supported: {', '.join(SAMPLERS)}"
        )
    return spec


def _source_of(name: str) -> Path:
    if name in BUNDLED:
        return _BUNDLED_FOLDER / BUNDLED[name]
    source = Path(name).expanduser()
    if not source.is_dir() and not (source.is_file() and source.suffix == ".gguf"):
        bundled = ", ".join(BUNDLED)
        raise CheckpointError(
            f"{name!r} is neither a bundled model ({bundled}) nor a checkpoint folder or GGUF file"
        )
    return source.resolve()


def _id_of(source: Path) -> str:
    source = source.resolve()
    name = re.sub(r"[^a-z0-9._-]+", "-", (source.name if source.is_dir() else source.stem).lower())
    return name.strip("._-")[:64]


def _override(fields: dict[str, Any], path: Path) -> None:
    """Replace entries of `fields` by those of the file, those of objects one by one."""
    for key, value in read_json_object(path).items():
        if key not in ModelSpec.model_fields or key == "source":
            raise CheckpointError(f"{path}: unknown field {key!r}")
        fields[key] = _merged(fields.get(key), value)


def _merged(before: Any, value: Any) -> Any:
    """`value`, or where both are objects their entries, those of `value` counting."""
    if not isinstance(value, Mapping) or not isinstance(before, Mapping):
        return value
    return {**before, **{key: _merged(before.get(key), own) for key, own in value.items()}}


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']} (found {problem['input']!r})"
