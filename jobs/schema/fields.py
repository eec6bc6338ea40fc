"""Kinds of fields that the models' inputs are made of."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from config.model_spec import FloatParameter, IntParameter, ModelSpec
from jobs.schema.seeds import MAX_SEED

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def model_of(fields: dict[str, Any]) -> type[BaseModel]:
    """The pydantic model of an input with these fields, in this order."""
    return cast("type[BaseModel]", create_model("Input", __config__=STRICT, **fields))


def prompt(spec: ModelSpec, description: str) -> Any:
    """A text that may not be left out."""
    return (
        Annotated[_text(spec), AfterValidator(_not_blank)],
        Field(description=description),
    )


def negative_prompt(spec: ModelSpec) -> Any:
    """A text that may be empty."""
    return _text(spec), Field(spec.negative_prompt, description="What it should not show.")


def int_field(parameter: IntParameter, description: str) -> tuple[type[int], FieldInfo]:
    """A whole number with a default."""
    return int, _range(parameter, parameter.default, description)


def optional_int_field(parameter: IntParameter, description: str, *, on_grid: bool = True) -> Any:
    """A whole number, or null for one that is found from the rest of the request."""
    return int | None, _range(parameter, None, description, on_grid=on_grid)


def float_field(parameter: FloatParameter, description: str) -> tuple[type[float], FieldInfo]:
    """A number with a default."""
    return float, _range(parameter, parameter.default, description)


def optional_float_field(parameter: FloatParameter, description: str) -> Any:
    """A number, or null for one that is found from the rest of the request."""
    return float | None, _range(parameter, None, description)


def seed(description: str) -> Any:
    """A seed, or null for a fresh one."""
    return int | None, Field(None, ge=0, le=MAX_SEED, description=description)


def sampler(spec: ModelSpec) -> Any:
    """One of the spec's sampler names."""
    samplers = StrEnum("Sampler", {name: name for name in spec.samplers})  # type: ignore[misc]
    return (
        Annotated[samplers, Field(strict=False)],
        Field(samplers(spec.samplers[0]), description="Sampling algorithm."),
    )


def output_quality(description: str) -> Any:
    """From 1, smallest file, to 100, best picture."""
    return int, Field(90, ge=1, le=100, description=description)


def _range(
    parameter: IntParameter | FloatParameter,
    default: float | None,
    description: str,
    *,
    on_grid: bool = True,
) -> FieldInfo:
    step = parameter.multiple_of if isinstance(parameter, IntParameter) and on_grid else 1
    info = Field(
        default,
        ge=parameter.minimum,
        le=parameter.maximum,
        multiple_of=step if step > 1 else None,
        description=description,
    )
    return cast("FieldInfo", info)


def _text(spec: ModelSpec) -> Any:
    return Annotated[str, Field(max_length=spec.max_prompt_chars), AfterValidator(_without_nul)]


def _without_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("holds a NUL character")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty")
    return value
