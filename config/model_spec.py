"""What one model offers, in numbers that need no tensor library to read.

The models package derives a `ModelSpec` from a checkpoint folder; the job layer validates requests
against it; the HTTP side publishes it under `/v1/models`; the worker loads what it points at. It is
plain data, so that the API process never has to import torch to know what a model can do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Task = Literal["text-to-image"]
Family = Literal["sana"]


class IntParameter(BaseModel):
    """A whole-number request field: its default and the inclusive range it may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: int
    minimum: int = Field(ge=1)
    maximum: int
    multiple_of: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        if not self.minimum <= self.default <= self.maximum or self.default % self.multiple_of:
            raise ValueError(
                f"default {self.default} is outside {self.minimum}..{self.maximum} "
                f"in steps of {self.multiple_of}"
            )
        return self


class FloatParameter(BaseModel):
    """A real-valued request field: its default and the inclusive range it may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: float
    minimum: float
    maximum: float

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        if not self.minimum <= self.default <= self.maximum:
            raise ValueError(f"default {self.default} is outside {self.minimum}..{self.maximum}")
        return self


class ModelSpec(BaseModel):
    """One servable model: identity, request limits with defaults, and where its weights lie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    family: Family
    task: Task = "text-to-image"
    description: str = ""
    width: IntParameter
    height: IntParameter
    num_inference_steps: IntParameter
    guidance_scale: FloatParameter
    num_images: IntParameter = IntParameter(default=1, minimum=1, maximum=8)
    samplers: tuple[str, ...] = Field(min_length=1, description="The first one is the default.")
    max_prompt_chars: int = Field(default=4000, ge=1)
    variant: str | None = Field(
        default=None, description="Which copy of the weights to load, where a folder has several."
    )
    source: Path = Field(description="Checkpoint folder on this machine; never shown to clients.")
