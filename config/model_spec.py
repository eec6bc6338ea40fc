"""What one model offers, in numbers that need no tensor library to read.

The models package derives a `ModelSpec` from a checkpoint folder; the job layer validates requests
against it; the HTTP side publishes it under `/v1/models`; the worker loads what it points at. It is
plain data, so that the API process never has to import torch to know what a model can do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Task = Literal["text-to-image", "video"]
Family = Literal["sana", "wan-vace", "fake"]

Residency = Literal["packed", "bf16", "fp8"]
"""How quantised weights rest in memory: as in the file, or converted once while loading."""

MAX_FAKE_STEP_SECONDS = 3600.0
MAX_FAKE_MEMORY_BYTES = 64 << 30


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


class VideoLimits(BaseModel):
    """What a model that makes clips takes beyond the fields that pictures have, too.

    A clip has 4n + 1 frames: the autoencoder packs four frames after the first into one latent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_frames: IntParameter
    fps: FloatParameter = Field(description="Frame rate of the finished clip, frames a second.")
    flow_shift: FloatParameter
    conditioning_scale: FloatParameter
    num_conditioning_scales: int = Field(
        ge=1, description="Length of `conditioning_scale` where it is given layer by layer."
    )
    max_reference_images: int = Field(ge=0)
    max_pixels: int = Field(ge=1, description="Most width * height * num_frames of one request.")

    @model_validator(mode="after")
    def _frames_fill_latents(self) -> Self:
        for name in ("default", "minimum", "maximum"):
            if (frames := getattr(self.num_frames, name)) % 4 != 1:
                raise ValueError(f"num_frames.{name} is {frames}, expected 4n + 1")
        return self


class FakeDefaults(BaseModel):
    """What the fake model does unless a request says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step_seconds: float = Field(default=0.01, ge=0, le=MAX_FAKE_STEP_SECONDS)
    memory_bytes: int = Field(default=0, ge=0, le=MAX_FAKE_MEMORY_BYTES)


class ModelSpec(BaseModel):
    """One servable model: identity, request limits with defaults, and where its weights lie.

    `video` is given if and only if the task is "video"; such a model makes one clip a job.
    """

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
    negative_prompt: str = Field(default="", description="What stands for one that is not given.")
    samplers: tuple[str, ...] = Field(min_length=1, description="The first one is the default.")
    max_prompt_chars: int = Field(default=4000, ge=1)
    variant: str | None = Field(
        default=None, description="Which copy of the weights to load, where a folder has several."
    )
    video: VideoLimits | None = None
    fake: FakeDefaults | None = Field(
        default=None, description="Given if and only if the family is `fake`."
    )
    residency: Residency | None = Field(
        default=None, description="How quantised weights rest in memory; None: by free memory."
    )
    source: Path = Field(
        description="Checkpoint folder or GGUF file on this machine; never shown to clients."
    )

    @model_validator(mode="after")
    def _clips_have_limits(self) -> Self:
        if (self.task == "video") != (self.video is not None):
            raise ValueError("video: given if and only if task is 'video'")
        if self.video is not None and self.num_images.maximum != 1:
            raise ValueError("num_images: a model that makes clips makes one a job")
        return self

    @model_validator(mode="after")
    def _only_fakes_fake(self) -> Self:
        if (self.family == "fake") != (self.fake is not None):
            raise ValueError("fake: given if and only if family is 'fake'")
        return self
