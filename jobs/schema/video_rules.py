"""What the fields of a clip's input mean together: which go with which, and sizes and lengths.

Input whose fields are valid by themselves comes in with what is known of its files; complete input
goes out, or one `InvalidInput` that lists every rule broken. The model fits sources of any size and
length to its canvas (`models.wan.canvas`), so none is refused for being small or short.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from config.model_spec import IntParameter, ModelSpec, VideoLimits
from jobs.errors import FieldError, InvalidInput
from jobs.media.info import MediaInfo
from jobs.schema.references import MEDIA_FIELDS, references_in

_TIMELINE_FIELDS = ("video", "control_video")
"""Sources that cover the whole clip and so give it its length."""

_SHAPE_FIELDS = (*_TIMELINE_FIELDS, "first_frame", "first_clip", "last_frame", "last_clip")
"""Sources that fill the frame and so give it its aspect ratio, the first one given."""

_ENDS = (("first_frame", "first_clip"), ("last_frame", "last_clip"))

_KIND_WORDS = {"image": "a picture", "video": "a clip"}
_FPS_DIGITS = 3
_ROUNDING = 1e-6
"""Seconds by which equal times may differ."""


def resolve(
    spec: ModelSpec, fields: Mapping[str, Any], files: Mapping[str, MediaInfo]
) -> dict[str, Any]:
    """`fields` with nothing left open. Raises `InvalidInput`."""
    assert spec.video is not None
    resolved = dict(fields)
    if resolved["outpaint"] is not None and not any(resolved["outpaint"].values()):
        resolved["outpaint"] = None
    _refuse([*_wrong_files(resolved, files), *_wrong_combinations(resolved)])
    infos = {name: files[resolved[name]] for name in _SHAPE_FIELDS if resolved[name] is not None}
    resolved["control"] = resolved["control"] or ("given" if resolved["control_video"] else None)
    for box in resolved["layout"] or ():
        box["end"] = box["end"] or box["start"]
    width, height = _size(spec, resolved, infos)
    resolved["width"], resolved["height"] = width, height
    resolved["num_frames"], resolved["fps"] = _length(spec.video, resolved, infos)
    _refuse([*_too_many_pixels(spec.video, resolved), *_nothing_to_make(resolved)])
    return resolved


def _refuse(errors: list[FieldError]) -> None:
    if errors:
        raise InvalidInput(errors[0].param, errors[0].message, errors)


def _wrong_files(fields: Mapping[str, Any], files: Mapping[str, MediaInfo]) -> Iterator[FieldError]:
    for reference in references_in(fields):
        param, kinds = reference.param, MEDIA_FIELDS[reference.field]
        info = files.get(reference.value)
        if info is None:
            yield FieldError(
                param, f"{param}: there is no file {reference.value[:40]}, or it has expired"
            )
        elif info.kind not in kinds:
            wanted = " or ".join(_KIND_WORDS[kind] for kind in kinds)
            yield FieldError(param, f"{param} must be {wanted}; the file is {_described(info)}")


def _described(info: MediaInfo) -> str:
    if info.kind == "image":
        return f"a picture ({info.content_type})"
    return f"a clip of {info.num_frames} frames ({info.content_type})"


def _wrong_combinations(fields: Mapping[str, Any]) -> Iterator[FieldError]:
    given = {name for name, value in fields.items() if value not in (None, [])}

    def refused(name: str, words: str) -> FieldError:
        return FieldError(f"input.{name}", f"input.{name} {words}")

    for name in ("mask", "outpaint"):
        if name in given and "video" not in given:
            yield refused(name, "needs input.video, the clip that it belongs to")
    if "video" in given:
        if not given & {"mask", "outpaint"}:
            yield refused(
                "video",
                "needs input.mask or input.outpaint, which say what is to be made; a clip that "
                "guides every frame is input.control_video",
            )
        for name in ("first_frame", "first_clip", "last_frame", "last_clip"):
            if name in given:
                yield refused(
                    name, "cannot be combined with input.video, which has these frames already"
                )
    for picture, clip in _ENDS:
        if {picture, clip} <= given:
            yield refused(clip, f"cannot be combined with input.{picture}: give one of them")
    yield from _wrong_control(fields, given, refused)


def _wrong_control(
    fields: Mapping[str, Any], given: set[str], refused: Any
) -> Iterator[FieldError]:
    if fields["control"] == "layout":
        if "layout" not in given:
            yield refused("layout", "is required when input.control is layout")
        if "control_video" in given:
            yield refused(
                "control_video", "cannot be combined with input.control layout, which draws it"
            )
        return
    if "layout" in given:
        yield refused("layout", "needs input.control to be layout")
    if "control" in given and "control_video" not in given:
        yield refused("control", f"{fields['control']} needs input.control_video")


def _size(
    spec: ModelSpec, fields: Mapping[str, Any], infos: Mapping[str, MediaInfo]
) -> tuple[int, int]:
    """Width and height as asked for; what is open follows the first source's aspect ratio."""
    width, height = fields["width"], fields["height"]
    if width is not None and height is not None:
        return width, height
    shape = next((infos[name] for name in _SHAPE_FIELDS if name in infos), None)
    aspect = spec.width.default / spec.height.default
    if shape is not None:
        aspect = shape.width / shape.height
        if (beyond := fields["outpaint"]) is not None:
            aspect *= (1 + beyond["left"] + beyond["right"]) / (
                1 + beyond["top"] + beyond["bottom"]
            )
    if width is not None:
        return width, _on_grid(width / aspect, spec.height)
    if height is not None:
        return _on_grid(height * aspect, spec.width), height
    return _within_area(spec, aspect)


def _within_area(spec: ModelSpec, aspect: float) -> tuple[int, int]:
    """The size nearest to `aspect` that has no more pixels than the default size."""
    area = spec.width.default * spec.height.default
    width = _on_grid((area * aspect) ** 0.5, spec.width)
    height = _on_grid((area / aspect) ** 0.5, spec.height)
    while width * height > area:
        # Rounded up: the longer side has the smaller loss.
        if width >= height and width > spec.width.minimum:
            width -= spec.width.multiple_of
        elif height > spec.height.minimum:
            height -= spec.height.multiple_of
        else:
            break
    return width, height


def _on_grid(value: float, parameter: IntParameter) -> int:
    """The nearest value that the parameter takes."""
    step = parameter.multiple_of
    low = -(-parameter.minimum // step) * step
    high = parameter.maximum // step * step
    return min(max(int(value / step + 0.5) * step, low), high)


def _length(
    limits: VideoLimits, fields: Mapping[str, Any], infos: Mapping[str, MediaInfo]
) -> tuple[int, float]:
    """Number of frames, 4n + 1, and frames a second."""
    source = next((infos[name] for name in _TIMELINE_FIELDS if name in infos), None)
    resampled = fields["frame_policy"] == "resample"
    num_frames, fps = fields["num_frames"], fields["fps"]
    if num_frames is not None:
        num_frames = (num_frames + 1) // 4 * 4 + 1
    else:
        most = limits.num_frames.maximum
        if source is None:
            wanted = limits.num_frames.default
        elif resampled:
            wanted = (min(source.num_frames, most) + 1) // 4 * 4 + 1
        else:
            # Rounded down: the source reaches to the end of the clip.
            shown = _frames_shown(source, most, fps or limits.fps.default)
            wanted = (shown - 1) // 4 * 4 + 1
        room = limits.max_pixels // (fields["width"] * fields["height"])
        num_frames = max(min(wanted, (room - 1) // 4 * 4 + 1), limits.num_frames.minimum)
    if fps is None:
        fps = limits.fps.default
        if resampled and source is not None and source.duration_seconds:
            rate = round(num_frames / source.duration_seconds, _FPS_DIGITS)
            fps = min(max(rate, limits.fps.minimum), limits.fps.maximum)
    return num_frames, fps


def _frames_shown(source: MediaInfo, most: int, fps: float) -> int:
    """How many frames a source fills at its own speed, `most` at most.

    Counts as `models.frame_choice` does: half a frame of either must be reached.
    """
    if source.fps is None:
        return 1
    last = source.num_frames / source.fps - min(1 / source.fps, 1 / fps) / 2
    return sum(last - index / fps > _ROUNDING for index in range(most))


def _too_many_pixels(limits: VideoLimits, fields: Mapping[str, Any]) -> Iterator[FieldError]:
    pixels = fields["width"] * fields["height"] * fields["num_frames"]
    if pixels > limits.max_pixels:
        yield FieldError(
            "input.num_frames",
            f"input.num_frames is too large for this size: {fields['width']} x "
            f"{fields['height']} x {fields['num_frames']} is {pixels} pixels, at most "
            f"{limits.max_pixels}",
        )


def _nothing_to_make(fields: Mapping[str, Any]) -> Iterator[FieldError]:
    """Ends that are too long are cut (`models.wan.canvas`), but each keeps a frame."""
    given = [name for names in _ENDS for name in names if fields[name] is not None]
    length = fields["num_frames"]
    if given and length <= len(given):
        yield FieldError(
            f"input.{given[-1]}",
            f"input.{given[-1]} leaves nothing to make: {len(given)} of {length} frames would be "
            "kept; ask for more frames",
        )
