"""The input of models that make pictures from text."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, Field

from config.model_spec import ModelSpec
from jobs.schema import fields
from jobs.schema.seeds import MAX_SEED

OUTPUT_FORMATS = ("png", "jpeg", "webp")
SEED_HELP = (
    "Seed of the first picture, drawn at random when absent; picture i uses seed + i, "
    f"and seed + num_images - 1 is at most {MAX_SEED}."
)


@lru_cache(maxsize=256)
def input_model(spec: ModelSpec) -> type[BaseModel]:
    """The pydantic model of this spec's input."""
    return fields.model_of(input_fields(spec))


def input_fields(spec: ModelSpec) -> dict[str, Any]:
    """What any model that makes pictures from text takes."""
    return {
        "prompt": fields.prompt(spec, "What the picture should show."),
        "negative_prompt": fields.negative_prompt(spec),
        "width": fields.int_field(spec.width, "Width of the picture in pixels."),
        "height": fields.int_field(spec.height, "Height of the picture in pixels."),
        "num_inference_steps": fields.int_field(spec.num_inference_steps, "Denoise steps."),
        "guidance_scale": fields.float_field(
            spec.guidance_scale, "How closely the picture follows the prompt."
        ),
        "num_images": fields.int_field(spec.num_images, "Pictures, each with a seed of its own."),
        "seed": fields.seed(SEED_HELP),
        "sampler": fields.sampler(spec),
        "output_format": (
            Literal["png", "jpeg", "webp"],
            Field("png", description="File format of the pictures."),
        ),
        "output_quality": fields.output_quality("For jpeg and webp; png is lossless."),
    }
