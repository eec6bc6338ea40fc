"""The input of the fake model: that of a picture, and how it is to take time, memory and harm."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, Field

from config.model_spec import MAX_FAKE_MEMORY_BYTES, MAX_FAKE_STEP_SECONDS, ModelSpec
from jobs.errors import InvalidInput
from jobs.schema import fields, image

FAILURES = ("none", "error", "out_of_memory", "crash", "hang")
MAX_FAILURE_IMAGES = 256

ALLOWED = {
    "step_seconds": f"a number from 0 to {MAX_FAKE_STEP_SECONDS:g}",
    "memory_bytes": f"a whole number from 0 to {MAX_FAKE_MEMORY_BYTES}",
    "failure": f"one of {', '.join(FAILURES)}",
    "failure_step": "a whole number from 1 to num_inference_steps",
    "failure_above_images": f"a whole number from 1 to {MAX_FAILURE_IMAGES}, or null",
}
"""What each field may hold, in words."""


@lru_cache(maxsize=256)
def input_model(spec: ModelSpec) -> type[BaseModel]:
    """The pydantic model of this spec's input."""
    assert spec.fake is not None
    made = {
        "step_seconds": (
            float,
            Field(
                spec.fake.step_seconds,
                ge=0,
                le=MAX_FAKE_STEP_SECONDS,
                description="How long a step takes.",
            ),
        ),
        "memory_bytes": (
            int,
            Field(
                spec.fake.memory_bytes,
                ge=0,
                le=MAX_FAKE_MEMORY_BYTES,
                description="Held on the device while the job runs.",
            ),
        ),
        "failure": (
            Literal["none", "error", "out_of_memory", "crash", "hang"],
            Field("none", description="What goes wrong; `crash` and `hang` end the worker."),
        ),
        "failure_step": (
            int,
            Field(1, ge=1, description="The step in which it goes wrong, the first being 1."),
        ),
        "failure_above_images": (
            int | None,
            Field(
                None,
                ge=1,
                le=MAX_FAILURE_IMAGES,
                description="With `out_of_memory`: from that step on, and only together with more "
                "images than so many.",
            ),
        ),
    }
    return fields.model_of(image.input_fields(spec) | made)


def check(resolved: Mapping[str, Any]) -> None:
    """Refuse a failure that could never happen. Raises `InvalidInput`."""
    step, steps = resolved["failure_step"], resolved["num_inference_steps"]
    if step > steps:
        raise InvalidInput(
            "input.failure_step",
            f"input.failure_step must be a whole number from 1 to num_inference_steps, which is "
            f"{steps}; got {step}",
        )
    if resolved["failure_above_images"] is not None and resolved["failure"] != "out_of_memory":
        raise InvalidInput(
            "input.failure_above_images",
            "input.failure_above_images must be null unless failure is out_of_memory; "
            f"failure is {resolved['failure']}",
        )
