"""Our words for what pydantic refuses: the field, what it may hold, and what it held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from pydantic_core import ErrorDetails

from config.model_spec import FloatParameter, IntParameter, ModelSpec
from jobs.errors import FieldError
from jobs.schema import fake, image, video
from jobs.schema.references import MEDIA_FIELDS
from jobs.schema.seeds import MAX_SEED

SHOWN_CHARS = 40
"""How much of a refused value is repeated in the message."""

MAX_ERRORS = 32
"""Refused fields listed in one error."""

_NESTED = ("outpaint", "reference_images", "layout", "conditioning_scale")
"""Fields whose parts are named one by one, by their whole path."""

_PLACE = "[left, top, right, bottom] in fractions from 0 to 1"
_BOX_PARTS = f"{{start, end}}, each {_PLACE}"
_BOX = f"a box {_BOX_PARTS}"
_FILE = "the id of an uploaded file (`file_...`) or a data URL"


def field_errors(
    spec: ModelSpec, known: Sequence[str], details: Sequence[ErrorDetails]
) -> list[FieldError]:
    """Pydantic's errors, each once and `MAX_ERRORS` at most; `known` are the input's fields."""
    return list(islice(_once(spec, known, details), MAX_ERRORS))


def _once(
    spec: ModelSpec, known: Sequence[str], details: Sequence[ErrorDetails]
) -> Iterator[FieldError]:
    """Where a field may be one of two things, pydantic says of both that it is not."""
    seen: set[FieldError] = set()
    for detail in details:
        if _is_list_taken_for_a_number(detail):
            continue
        error = _field_error(spec, known, detail)
        if error not in seen:
            seen.add(error)
            yield error


def _is_list_taken_for_a_number(detail: ErrorDetails) -> bool:
    """What is wrong with it as a list is said too, and says more."""
    whole = detail["loc"][:1] == ("conditioning_scale",) and len(detail["loc"]) == 2
    return whole and detail["type"] == "float_type" and isinstance(detail["input"], list)


def _field_error(spec: ModelSpec, known: Sequence[str], detail: ErrorDetails) -> FieldError:
    path = _path(detail)
    name = path[0] if path else ""
    nested = len(path) > 1
    param = ".".join(["input", *path])
    if detail["type"] == "extra_forbidden" and not nested:
        fields = ", ".join(known)
        return FieldError(param, f"{param} is not a parameter of {spec.id}; it takes {fields}")
    allowed = _allowed_part(spec, path) if nested else _allowed(spec, name)
    if detail["type"] == "extra_forbidden":
        owner = ".".join(["input", *path[:-1]])
        allowed = _allowed_part(spec, path[:-1]) if len(path) > 2 else _allowed(spec, name)
        return FieldError(param, f"{param} is not known; {owner} must be {allowed}")
    if detail["type"] == "string_unicode":
        return FieldError(param, f"{param} is not valid Unicode; it must be {allowed}")
    if detail["type"] == "missing":
        return FieldError(param, f"{param} is required: {allowed}")
    if detail["type"] == "value_error":
        reason = detail["msg"].removeprefix("Value error, ")
        return FieldError(param, f"{param} {reason}; it must be {allowed}")
    found = detail["input"]
    if detail["type"] == "too_long" and name == "reference_images" and spec.video is not None:
        return FieldError(
            param,
            f"{param} has {len(found)} pictures, at most {spec.video.max_reference_images} are "
            "allowed",
        )
    if detail["type"] == "string_pattern_mismatch" and _is_web_address(found):
        return FieldError(
            param,
            f"{param} is a web address, which is not supported yet: upload the file "
            "(POST /v1/files) and give its id",
        )
    return FieldError(param, f"{param} must be {allowed}; got {shown(found)}")


def _is_web_address(value: object) -> bool:
    return isinstance(value, str) and value[:8].lower().startswith(("http://", "https://"))


def _path(detail: ErrorDetails) -> list[str]:
    """The field and the part of it that is at fault."""
    path = [str(part)[:64] for part in detail["loc"]]
    if not path or path[0] not in _NESTED:
        return path[:1]
    if path[0] == "conditioning_scale":
        # Second is pydantic's name for one of the two things that it may be.
        del path[1:2]
    return path


def _allowed_part(spec: ModelSpec, path: Sequence[str]) -> str:
    """What a part of a field may hold, in words."""
    name, *parts = path
    if name == "outpaint":
        return "a number from 0 to 1, for left, right, top or bottom"
    if name == "conditioning_scale":
        assert spec.video is not None
        return _in_range(spec.video.conditioning_scale)
    if name == "layout":
        # The box, where it starts or ends, one side of that place.
        return (_BOX, _PLACE, "a number from 0 to 1")[len(parts) - 1]
    return _FILE


def _allowed(spec: ModelSpec, name: str) -> str:
    """What a field may hold, in words."""
    if spec.fake is not None and name in fake.ALLOWED:
        return fake.ALLOWED[name]
    if spec.video is not None and (words := _allowed_in_clips(spec, name)) is not None:
        return words
    ranges: dict[str, IntParameter | FloatParameter] = {
        "width": spec.width,
        "height": spec.height,
        "num_inference_steps": spec.num_inference_steps,
        "guidance_scale": spec.guidance_scale,
        "num_images": spec.num_images,
    }
    if name in ranges:
        return _in_range(ranges[name])
    texts = {
        "prompt": f"a text of 1 to {spec.max_prompt_chars} characters, not only spaces",
        "negative_prompt": f"a text of at most {spec.max_prompt_chars} characters",
        "seed": f"a whole number from 0 to {MAX_SEED}, or null",
        "sampler": f"one of {', '.join(spec.samplers)}",
        "output_format": f"one of {', '.join(image.OUTPUT_FORMATS)}",
        "output_quality": "a whole number from 1 to 100",
    }
    return texts.get(name, "an object")


def _allowed_in_clips(spec: ModelSpec, name: str) -> str | None:
    """What a field may hold that only clips have, or that they take otherwise."""
    assert spec.video is not None
    limits = spec.video
    if name in MEDIA_FIELDS and name != "reference_images":
        return f"{_FILE}, or null"
    if name in ("width", "height"):
        return f"{_in_range(spec.width if name == 'width' else spec.height)}, or null"
    scale = _in_range(limits.conditioning_scale)
    texts = {
        "num_frames": f"{_in_range(limits.num_frames)}, or null",
        "fps": f"{_in_range(limits.fps)}, or null",
        "flow_shift": _in_range(limits.flow_shift),
        "conditioning_scale": f"{scale}, or a list of {limits.num_conditioning_scales} of them",
        "outpaint": "an object with left, right, top and bottom, numbers from 0 to 1, or null",
        "control": f"one of {', '.join(video.CONTROLS)}, or null",
        "layout": f"a list of 1 to {video.MAX_BOXES} boxes {_BOX_PARTS}, or null",
        "reference_images": f"a list of at most {limits.max_reference_images} pictures, each "
        f"{_FILE}",
        "frame_policy": f"one of {', '.join(video.FRAME_POLICIES)}",
        "output_format": f"one of {', '.join(video.OUTPUT_FORMATS)}",
    }
    return texts.get(name)


def _in_range(parameter: IntParameter | FloatParameter) -> str:
    """What a parameter may be, in words: its range, or the one value where there is no other."""
    if isinstance(parameter, FloatParameter):
        if parameter.minimum == parameter.maximum:
            return f"{parameter.minimum:g}"
        return f"a number from {parameter.minimum:g} to {parameter.maximum:g}"
    if parameter.minimum == parameter.maximum:
        return str(parameter.minimum)
    text = f"a whole number from {parameter.minimum} to {parameter.maximum}"
    return text if parameter.multiple_of == 1 else f"{text} in steps of {parameter.multiple_of}"


def shown(value: object) -> str:
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
