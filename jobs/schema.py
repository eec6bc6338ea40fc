"""What a request's `input` may hold, per model: validation, defaults, and the JSON Schema.

A `ModelSpec` gives ranges and defaults; from it comes one pydantic model per spec, which the API
validates against before anything is queued. Values are taken as they are (`"20"` is not 20), and
every refusal names the field and the range it may take.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from config.model_spec import FloatParameter, IntParameter, ModelSpec
from jobs.errors import FieldError, InvalidInput

MAX_SEED = 2**32 - 1
SEED_HELP = (
    "Seed of the first picture, drawn at random when absent; picture i uses seed + i, "
    f"and seed + num_images - 1 is at most {MAX_SEED}."
)
OUTPUT_FORMATS = ("png", "jpeg", "webp")
SHOWN_CHARS = 40
"""How much of a refused value is repeated in the message."""

MAX_ERRORS = 32
"""Refused fields listed in one error."""


def input_model(spec: ModelSpec) -> type[BaseModel]:
    """The pydantic model of this spec's input; unknown fields are refused."""
    return _input_model(spec)


def resolve_input(spec: ModelSpec, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A complete input: `raw` validated, defaults filled in, a seed drawn if none is given.

    The result resolves to itself, so a record's input can be submitted again as it is. Raises
    `InvalidInput` with a `FieldError` for each bad field, dotted paths from `input`.
    """
    if not isinstance(raw, Mapping):
        raise InvalidInput("input", "input must be an object")
    try:
        resolved = input_model(spec).model_validate(dict(raw)).model_dump(mode="json")
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        refused = [_field_error(spec, detail) for detail in details[:MAX_ERRORS]]
        raise InvalidInput(refused[0].param, refused[0].message, refused) from None
    # Image i uses seed + i, which must be a seed of its own for its recipe to be submitted again.
    last = MAX_SEED + 1 - resolved["num_images"]
    if resolved["seed"] is None:
        resolved["seed"] = secrets.randbelow(last + 1)
    elif resolved["seed"] > last:
        raise InvalidInput(
            "input.seed",
            f"input.seed must be a whole number from 0 to {last} for {resolved['num_images']} "
            f"images, since image i uses seed + i; got {resolved['seed']}",
        )
    return resolved


def input_json_schema(spec: ModelSpec) -> dict[str, Any]:
    """JSON Schema (2020-12) of this spec's input."""
    return input_model(spec).model_json_schema()


def total_steps(resolved: Mapping[str, Any]) -> int:
    """Denoise steps of a resolved input; the images of one job share their steps."""
    return int(resolved["num_inference_steps"])


def _without_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("holds a NUL character")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty")
    return value


@lru_cache(maxsize=256)
def _input_model(spec: ModelSpec) -> type[BaseModel]:
    text = Annotated[str, Field(max_length=spec.max_prompt_chars), AfterValidator(_without_nul)]
    samplers = StrEnum("Sampler", {name: name for name in spec.samplers})  # type: ignore[misc]
    fields: dict[str, Any] = {
        "prompt": (
            Annotated[text, AfterValidator(_not_blank)],
            Field(description="What the picture should show."),
        ),
        "negative_prompt": (text, Field("", description="What it should not show.")),
        "width": _int_field(spec.width, "Width of the picture in pixels."),
        "height": _int_field(spec.height, "Height of the picture in pixels."),
        "num_inference_steps": _int_field(spec.num_inference_steps, "Denoise steps."),
        "guidance_scale": _float_field(
            spec.guidance_scale, "How closely the picture follows the prompt."
        ),
        "num_images": _int_field(spec.num_images, "Pictures, each with a seed of its own."),
        "seed": (
            int | None,
            Field(None, ge=0, le=MAX_SEED, description=SEED_HELP),
        ),
        "sampler": (
            Annotated[samplers, Field(strict=False)],
            Field(samplers(spec.samplers[0]), description="Sampling algorithm."),
        ),
        "output_format": (
            Literal["png", "jpeg", "webp"],
            Field("png", description="File format of the pictures."),
        ),
        "output_quality": (
            int,
            Field(90, ge=1, le=100, description="For jpeg and webp; png is lossless."),
        ),
    }
    model = create_model(
        "Input",
        __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True),
        **fields,
    )
    return cast("type[BaseModel]", model)


def _int_field(parameter: IntParameter, description: str) -> tuple[type[int], FieldInfo]:
    info = Field(
        parameter.default,
        ge=parameter.minimum,
        le=parameter.maximum,
        multiple_of=parameter.multiple_of if parameter.multiple_of > 1 else None,
        description=description,
    )
    return int, cast("FieldInfo", info)


def _float_field(parameter: FloatParameter, description: str) -> tuple[type[float], FieldInfo]:
    info = Field(
        parameter.default, ge=parameter.minimum, le=parameter.maximum, description=description
    )
    return float, cast("FieldInfo", info)


def _field_error(spec: ModelSpec, detail: ErrorDetails) -> FieldError:
    """Our words for one of pydantic's errors."""
    name = str(detail["loc"][0])[:64] if detail["loc"] else ""
    param = f"input.{name}" if name else "input"
    if detail["type"] == "extra_forbidden":
        known = ", ".join(input_model(spec).model_fields)
        return FieldError(param, f"{param} is not a parameter of {spec.id}; it takes {known}")
    allowed = _allowed(spec, name)
    if detail["type"] == "string_unicode":
        return FieldError(param, f"{param} is not valid Unicode; it must be {allowed}")
    if detail["type"] == "missing":
        return FieldError(param, f"{param} is required: {allowed}")
    if detail["type"] == "value_error":
        reason = detail["msg"].removeprefix("Value error, ")
        return FieldError(param, f"{param} {reason}; it must be {allowed}")
    return FieldError(param, f"{param} must be {allowed}; got {_shown(detail['input'])}")


def _allowed(spec: ModelSpec, name: str) -> str:
    """What a field may hold, in words."""
    ranges: dict[str, IntParameter | FloatParameter] = {
        "width": spec.width,
        "height": spec.height,
        "num_inference_steps": spec.num_inference_steps,
        "guidance_scale": spec.guidance_scale,
        "num_images": spec.num_images,
    }
    if name in ranges:
        parameter = ranges[name]
        kind = "a whole number" if isinstance(parameter, IntParameter) else "a number"
        text = f"{kind} from {parameter.minimum:g} to {parameter.maximum:g}"
        if isinstance(parameter, IntParameter):
            text = f"{kind} from {parameter.minimum} to {parameter.maximum}"
            if parameter.multiple_of > 1:
                text += f" in steps of {parameter.multiple_of}"
        return text
    texts = {
        "prompt": f"a text of 1 to {spec.max_prompt_chars} characters, not only spaces",
        "negative_prompt": f"a text of at most {spec.max_prompt_chars} characters",
        "seed": f"a whole number from 0 to {MAX_SEED}, or null",
        "sampler": f"one of {', '.join(spec.samplers)}",
        "output_format": f"one of {', '.join(OUTPUT_FORMATS)}",
        "output_quality": "a whole number from 1 to 100",
    }
    return texts.get(name, "an object")


def _shown(value: object) -> str:
    """A refused value, short and printable."""
    if isinstance(value, str):
        if len(value) > SHOWN_CHARS:
            return f"{len(value)} characters"
        return repr(value).encode("ascii", "backslashreplace").decode()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**SHOWN_CHARS else "a far larger number"
    if isinstance(value, Mapping):
        return "an object"
    return "an array" if isinstance(value, Sequence) else "a value of another type"
