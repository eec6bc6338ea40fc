"""What a request's `input` may hold, per model: validation, defaults, and the JSON Schema.

A `ModelSpec` gives ranges and defaults; from it comes one pydantic model per spec, which the API
validates against before anything is queued. Values are taken as they are (`"20"` is not 20), and
every refusal names the field and what it may hold. Files come in as facts about them
(`MediaInfo`), looked up by the caller; nothing here opens one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from config.model_spec import ModelSpec
from jobs.errors import InvalidInput
from jobs.media.info import MediaInfo
from jobs.schema import fake, image, video, video_rules
from jobs.schema.references import FileReference, references_in
from jobs.schema.refusals import field_errors
from jobs.schema.seeds import resolve_seed

__all__ = [
    "FileReference",
    "file_references",
    "input_json_schema",
    "input_model",
    "resolve_input",
    "total_steps",
]

_NO_FILES: Mapping[str, MediaInfo] = {}


def input_model(spec: ModelSpec) -> type[BaseModel]:
    """The pydantic model of this spec's input; unknown fields are refused."""
    if spec.fake is not None:
        return fake.input_model(spec)
    return video.input_model(spec) if spec.task == "video" else image.input_model(spec)


def file_references(spec: ModelSpec, raw: Mapping[str, Any]) -> list[FileReference]:
    """Every file that `raw` names: ids of uploads and data URLs, in the order of the fields.

    Raises `InvalidInput` for fields that are wrong whatever the files hold.
    """
    if spec.task != "video":
        return []
    return references_in(_validated(spec, raw))


def resolve_input(
    spec: ModelSpec, raw: Mapping[str, Any], files: Mapping[str, MediaInfo] = _NO_FILES
) -> dict[str, Any]:
    """A complete input: `raw` validated, defaults filled in, a seed drawn if none is given.

    `files` has what is known of the files that `raw` names, by id; `raw` holds no data URLs any
    more. The result resolves to itself, so a record's input can be submitted again as it is. Raises
    `InvalidInput` with a `FieldError` for each bad field, dotted paths from `input`.
    """
    resolved = _validated(spec, raw)
    if spec.task == "video":
        resolved = video_rules.resolve(spec, resolved, files)
    if spec.fake is not None:
        fake.check(resolved)
    # Image i uses seed + i, which must be a seed of its own for its recipe to be submitted again.
    resolved["seed"] = resolve_seed(resolved["seed"], resolved.get("num_images", 1))
    return resolved


def input_json_schema(spec: ModelSpec) -> dict[str, Any]:
    """JSON Schema (2020-12) of this spec's input."""
    return input_model(spec).model_json_schema()


def total_steps(resolved: Mapping[str, Any]) -> int:
    """Denoise steps of a resolved input; the images of one job share their steps."""
    return int(resolved["num_inference_steps"])


def _validated(spec: ModelSpec, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Every field by itself, defaults filled in."""
    if not isinstance(raw, Mapping):
        raise InvalidInput("input", "input must be an object")
    try:
        return input_model(spec).model_validate(dict(raw)).model_dump(mode="json")
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        known = tuple(input_model(spec).model_fields)
        refused = field_errors(spec, known, details)
        raise InvalidInput(refused[0].param, refused[0].message, refused) from None
