"""The input of models that make clips, field by field; `video_rules` has what they mean together.

Every task is a combination of the media fields: none of them for text to video, `reference_images`
for things to show, `control_video` or `layout` for guidance of every frame, `video` with `mask` or
`outpaint` for editing, first and last frames or clips for continuation.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from config.model_spec import ModelSpec, VideoLimits
from jobs.schema import fields
from jobs.schema.references import FILE_PATTERN

OUTPUT_FORMATS = ("mp4", "webm", "webp")
CONTROLS = ("given", "grey", "layout")
FRAME_POLICIES = ("trim", "resample")
MAX_BOXES = 16

FileValue = Annotated[str, Field(pattern=FILE_PATTERN)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _not_inside_out(box: list[float]) -> list[float]:
    left, top, right, bottom = box
    if not (left < right and top < bottom):
        raise ValueError("is a box without an inside")
    return box


Box = Annotated[list[Fraction], Field(min_length=4, max_length=4), AfterValidator(_not_inside_out)]


class Outpaint(BaseModel):
    """How far the canvas reaches beyond the source, in fractions of the source's sides."""

    model_config = fields.STRICT

    left: Fraction = 0.0
    right: Fraction = 0.0
    top: Fraction = 0.0
    bottom: Fraction = 0.0


class LayoutBox(BaseModel):
    """Where something is: `[left, top, right, bottom]` in fractions of the frame's sides.

    It moves evenly from `start` in the first frame to `end` in the last one.
    """

    model_config = fields.STRICT

    start: Box
    end: Box | None = Field(None, description="null: where it starts.")


@lru_cache(maxsize=256)
def input_model(spec: ModelSpec) -> type[BaseModel]:
    """The pydantic model of this spec's input."""
    assert spec.video is not None
    made: dict[str, Any] = {
        "prompt": fields.prompt(spec, "What the clip should show."),
        "negative_prompt": fields.negative_prompt(spec),
        "width": fields.optional_int_field(
            spec.width,
            "Width of the clip in pixels. null: by the source's aspect ratio, within the area of "
            f"{spec.width.default} x {spec.height.default}.",
        ),
        "height": fields.optional_int_field(spec.height, "Height of the clip, as its width."),
        "num_frames": fields.optional_int_field(
            spec.video.num_frames,
            "Frames of the clip; any number is rounded to the nearest 4n + 1. null: as many as "
            f"`video` or `control_video` has, else {spec.video.num_frames.default}.",
        ),
        "fps": fields.optional_float_field(
            spec.video.fps,
            f"Frames a second of the clip. null: {spec.video.fps.default:g}, or when a source is "
            "resampled, the rate that keeps its duration.",
        ),
        "num_inference_steps": fields.int_field(spec.num_inference_steps, "Denoise steps."),
        "guidance_scale": fields.float_field(
            spec.guidance_scale, "How closely the clip follows the prompt."
        ),
        "flow_shift": fields.float_field(
            spec.video.flow_shift, "More moves the steps towards the coarse shape of things."
        ),
        "conditioning_scale": _conditioning_scale(spec.video),
        "seed": fields.seed("Drawn at random when absent."),
        "sampler": fields.sampler(spec),
        **_media_fields(spec.video),
        "frame_policy": (
            Literal["trim", "resample"],
            Field(
                "trim",
                description="How a source of another length is fitted: its first frames at its "
                "own speed, or all of it spread over the clip.",
            ),
        ),
        "output_format": (
            Literal["mp4", "webm", "webp"],
            Field("mp4", description="File format of the clip."),
        ),
        "output_quality": fields.output_quality("Higher is better and larger."),
    }
    return fields.model_of(made)


def _media_fields(limits: VideoLimits) -> dict[str, Any]:
    def file(description: str) -> Any:
        return (
            FileValue | None,
            Field(None, description=f"{description} The id of a file, or a data URL."),
        )

    return {
        "video": file("A clip to edit: kept where `mask` is black and inside of `outpaint`."),
        "mask": file(
            "A picture or a clip, white where `video` is to be made anew; transparent is white."
        ),
        "outpaint": (
            Outpaint | None,
            Field(None, description="Room to be filled around `video`."),
        ),
        "control_video": file("A clip that guides every frame: depth, pose, scribble, flow."),
        "control": (
            Literal["given", "grey", "layout"] | None,
            Field(
                None,
                description="How `control_video` is used: as it is, or turned grey first; or "
                "`layout`, which draws it from the field of that name.",
            ),
        ),
        "layout": (
            Annotated[list[LayoutBox], Field(min_length=1, max_length=MAX_BOXES)] | None,
            Field(None, description="Boxes in which things are to be."),
        ),
        "first_frame": file("A picture to begin with."),
        "last_frame": file("A picture to end with."),
        "first_clip": file("A clip to continue from its end."),
        "last_clip": file("A clip to lead up to."),
        "reference_images": (
            Annotated[list[FileValue], Field(max_length=limits.max_reference_images)],
            Field(
                default_factory=list,
                description="Pictures of what the clip is to contain, in this order: ids of "
                "files, or data URLs.",
            ),
        ),
    }


def _conditioning_scale(limits: VideoLimits) -> Any:
    scale = limits.conditioning_scale
    count = limits.num_conditioning_scales
    number = Annotated[float, Field(ge=scale.minimum, le=scale.maximum)]
    return (
        number | Annotated[list[number], Field(min_length=count, max_length=count)],
        Field(
            scale.default,
            description="Weight of the media fields, one for all layers or one for each of "
            f"{count}.",
        ),
    )
