"""The input of clips: what goes together, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import InvalidInput
from jobs.schema import file_references, input_json_schema, resolve_input, total_steps
from tests.video_inputs import CLIP, FILES, OTHER, PICTURE, SHORT, WIDE, resolved
from tests.video_spec import VIDEO_SPEC as SPEC

BOX = {"start": [0, 0, 1, 1]}


def refusal(**fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as refused:
        resolve_input(SPEC, {"prompt": "x", **fields}, FILES)
    assert len(refused.value.message) < 400
    return refused.value


def test_defaults_fill_every_field() -> None:
    assert resolved(seed=7) == {
        "prompt": "x",
        "negative_prompt": "",
        "width": 96,
        "height": 64,
        "num_frames": 17,
        "fps": 16.0,
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "flow_shift": 3.0,
        "conditioning_scale": 1.0,
        "seed": 7,
        "sampler": "unipc",
        "video": None,
        "mask": None,
        "outpaint": None,
        "control_video": None,
        "control": None,
        "layout": None,
        "first_frame": None,
        "last_frame": None,
        "first_clip": None,
        "last_clip": None,
        "reference_images": [],
        "frame_policy": "trim",
        "output_format": "mp4",
        "output_quality": 90,
    }
    assert total_steps(resolved()) == 4


def test_a_seed_is_drawn_when_none_is_given() -> None:
    assert len({resolved()["seed"] for _ in range(4)}) > 1
    assert refusal(seed=2**32).param == "input.seed"


# The tasks, each by the fields that make it.
TASKS: dict[str, dict[str, Any]] = {
    "text to video": {},
    "references": {"reference_images": [PICTURE, PICTURE]},
    "control": {"control_video": CLIP},
    "grey control": {"control_video": CLIP, "control": "grey"},
    "layout": {"control": "layout", "layout": [{"start": [0, 0, 0.5, 0.5]}]},
    "inpainting": {"video": CLIP, "mask": PICTURE},
    "inpainting with a moving mask": {"video": CLIP, "mask": WIDE},
    "outpainting": {"video": CLIP, "outpaint": {"left": 0.5}},
    "both": {"video": CLIP, "mask": PICTURE, "outpaint": {"top": 1}},
    "first frame": {"first_frame": PICTURE},
    "last frame": {"last_frame": PICTURE},
    "first and last frame": {"first_frame": PICTURE, "last_frame": PICTURE},
    "extension": {"first_clip": SHORT},
    "extension of a long clip": {"first_clip": CLIP},
    "lead-up": {"last_clip": SHORT},
    "lead-up to a long clip": {"last_clip": CLIP},
    "between": {"first_clip": SHORT, "last_frame": PICTURE},
    "between clips": {"first_clip": CLIP, "last_clip": SHORT, "num_frames": 5},
    "between long clips": {"first_clip": CLIP, "last_clip": CLIP, "num_frames": 5},
    "inpainting with references": {
        "video": CLIP,
        "mask": PICTURE,
        "reference_images": [PICTURE],
    },
    "controlled inpainting": {"video": CLIP, "mask": PICTURE, "control_video": CLIP},
    "controlled first frame": {"control_video": CLIP, "first_frame": PICTURE},
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_resolves_to_an_input_that_can_be_submitted_again(task: str) -> None:
    made = resolved(**TASKS[task])
    assert made["num_frames"] % 4 == 1
    assert made["width"] % 16 == made["height"] % 16 == 0
    assert None not in (made["seed"], made["fps"])


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"mask": PICTURE}, "mask", "needs input.video"),
        ({"outpaint": {"left": 0.5}}, "outpaint", "needs input.video"),
        ({"video": CLIP}, "video", "needs input.mask or input.outpaint"),
        ({"video": CLIP, "outpaint": {}}, "video", "needs input.mask or input.outpaint"),
        (
            {"video": CLIP, "mask": PICTURE, "first_frame": PICTURE},
            "first_frame",
            "cannot be combined with input.video",
        ),
        (
            {"video": CLIP, "mask": PICTURE, "last_clip": CLIP},
            "last_clip",
            "cannot be combined with input.video",
        ),
        ({"first_frame": PICTURE, "first_clip": SHORT}, "first_clip", "input.first_frame"),
        ({"last_frame": PICTURE, "last_clip": SHORT}, "last_clip", "input.last_frame"),
        ({"control": "given"}, "control", "needs input.control_video"),
        ({"control": "grey"}, "control", "needs input.control_video"),
        ({"control": "layout"}, "layout", "is required"),
        ({"layout": [{"start": [0, 0, 1, 1]}]}, "layout", "input.control to be layout"),
        (
            {
                "control": "layout",
                "layout": [{"start": [0, 0, 1, 1]}],
                "control_video": CLIP,
            },
            "control_video",
            "which draws it",
        ),
        ({"video": PICTURE, "mask": PICTURE}, "video", "must be a clip; the file is a picture"),
        ({"control_video": PICTURE}, "control_video", "must be a clip"),
        ({"first_frame": CLIP}, "first_frame", "must be a picture; the file is a clip of 40"),
        ({"last_clip": PICTURE}, "last_clip", "must be a clip"),
        ({"reference_images": [PICTURE, CLIP]}, "reference_images.1", "must be a picture"),
        (
            {"reference_images": [PICTURE] * 3},
            "reference_images",
            "has 3 pictures, at most 2 are allowed",
        ),
        ({"reference_images": PICTURE}, "reference_images", "a list of at most 2"),
        ({"reference_images": [7]}, "reference_images.0", "the id of an uploaded file"),
        ({"first_frame": OTHER}, "first_frame", "there is no file"),
        ({"first_frame": "first.png"}, "first_frame", "the id of an uploaded file"),
        ({"first_frame": "https://x.org/a.png"}, "first_frame", "not supported yet: upload"),
        ({"last_clip": CLIP, "num_frames": 1}, "last_clip", "1 of 1 frames"),
        ({"first_frame": PICTURE, "num_frames": 1}, "first_frame", "1 of 1 frames"),
        ({"first_clip": SHORT, "num_frames": 1}, "first_clip", "1 of 1 frames"),
        (
            {"first_frame": PICTURE, "last_clip": SHORT, "num_frames": 1},
            "last_clip",
            "2 of 1 frames",
        ),
        ({"width": 100}, "width", "in steps of 16, or null"),
        ({"num_frames": 34}, "num_frames", "from 1 to 33, or null"),
        ({"num_frames": 9.0}, "num_frames", "a whole number"),
        ({"fps": 0}, "fps", "a number from 1 to 60, or null"),
        ({"flow_shift": 0}, "flow_shift", "from 0.1 to 100"),
        ({"conditioning_scale": 3}, "conditioning_scale", "from 0 to 2, or a list of 3"),
        ({"conditioning_scale": [1, 1]}, "conditioning_scale", "a list of 3"),
        ({"conditioning_scale": "1"}, "conditioning_scale", "a list of 3"),
        ({"conditioning_scale": [1, 1, 3]}, "conditioning_scale.2", "from 0 to 2; got 3"),
        ({"conditioning_scale": [1, [], 1]}, "conditioning_scale.1", "got an array"),
        ({"outpaint": {"left": 2}}, "outpaint.left", "from 0 to 1"),
        ({"outpaint": {"up": 1}}, "outpaint.up", "is not known; input.outpaint must be an object"),
        ({"outpaint": 1}, "outpaint", "an object with left, right, top and bottom"),
        ({"layout": []}, "layout", "a list of 1 to 16 boxes"),
        ({"layout": {}}, "layout", "a list of 1 to 16 boxes"),
        ({"layout": [BOX, 3]}, "layout.1", "a box {start, end}"),
        ({"layout": [BOX, {"start": [0, 0, 1]}]}, "layout.1.start", "[left, top, right, bottom]"),
        ({"layout": [{"end": [0, 0, 1, 1]}]}, "layout.0.start", "is required"),
        ({"layout": [{"start": [0.5, 0, 0.5, 1]}]}, "layout.0.start", "without an inside"),
        ({"layout": [BOX | {"end": [0, 0, 2, 1]}]}, "layout.0.end.2", "from 0 to 1; got 2"),
        ({"layout": [BOX | {"middle": 1}]}, "layout.0.middle", "input.layout.0 must be a box"),
        ({"control": "depth"}, "control", "one of given, grey, layout"),
        ({"frame_policy": "loop"}, "frame_policy", "one of trim, resample"),
        ({"output_format": "png"}, "output_format", "one of mp4, webm, webp"),
        ({"sampler": "ddim"}, "sampler", "one of unipc, flow-euler"),
        ({"num_images": 1}, "num_images", "not a parameter of video-model"),
        ({"width": 256, "height": 256, "num_frames": 33}, "num_frames", "at most 540672"),
    ],
)
def test_a_refusal_names_the_field_and_the_rule(
    fields: dict[str, Any], param: str, words: str
) -> None:
    refused = refusal(**fields)
    assert refused.param == f"input.{param}"
    assert words in refused.message
    assert f"input.{param.partition('.')[0]}" in refused.message


def test_a_length_that_cannot_be_chosen_is_told_as_that_length() -> None:
    assert SPEC.video is not None
    only = SPEC.video.num_frames.model_copy(update={"default": 9, "minimum": 9, "maximum": 9})
    spec = SPEC.model_copy(update={"video": SPEC.video.model_copy(update={"num_frames": only})})
    with pytest.raises(InvalidInput, match=r"^input\.num_frames must be 9, or null; got 17$"):
        resolve_input(spec, {"prompt": "x", "num_frames": 17})


@pytest.mark.parametrize(
    "fields",
    [
        {"conditioning_scale": 3},
        {"conditioning_scale": "1"},
        {"conditioning_scale": [1, 1]},
        {"conditioning_scale": [1, 1, 3]},
        {"layout": [{"start": [0, 0, 1, 2]}]},
    ],
)
def test_one_mistake_is_told_once(fields: dict[str, Any]) -> None:
    assert len(refusal(**fields).errors) == 1


def test_every_bad_side_of_every_box_is_listed() -> None:
    layout = [{"start": [0, 0, 2, 2]}, {"start": [0, 0, 1, 1], "end": [-1, 0, 1, 1]}]
    assert [error.param for error in refusal(layout=layout).errors] == [
        "input.layout.0.start.2",
        "input.layout.0.start.3",
        "input.layout.1.end.0",
    ]


def test_all_broken_rules_are_listed() -> None:
    refused = refusal(mask=PICTURE, control="grey", first_frame=OTHER)
    assert {error.param for error in refused.errors} == {
        "input.mask",
        "input.control",
        "input.first_frame",
    }


def test_control_is_given_when_a_control_clip_is() -> None:
    assert resolved(control_video=CLIP)["control"] == "given"
    assert resolved(control_video=CLIP, control="grey")["control"] == "grey"


def test_a_box_without_an_end_stays_where_it_is() -> None:
    box = [0.0, 0.25, 0.5, 1.0]
    made = resolved(control="layout", layout=[{"start": box}])
    assert made["layout"] == [{"start": box, "end": box}]


def test_an_outpaint_of_nothing_is_none() -> None:
    made = resolved(video=CLIP, mask=PICTURE, outpaint={"left": 0})
    assert made["outpaint"] is None


def test_one_scale_or_one_for_each_layer_is_taken() -> None:
    assert resolved(conditioning_scale=[0, 1, 2])["conditioning_scale"] == [0.0, 1.0, 2.0]
    assert resolved(conditioning_scale=0.5)["conditioning_scale"] == 0.5


def test_the_files_of_an_input_are_found_in_the_order_of_its_fields() -> None:
    raw = {"prompt": "x", "reference_images": [PICTURE, "data:,x"], "first_frame": OTHER}
    found = file_references(SPEC, raw)
    assert [(reference.param, reference.value) for reference in found] == [
        ("input.first_frame", OTHER),
        ("input.reference_images.0", PICTURE),
        ("input.reference_images.1", "data:,x"),
    ]
    assert [reference.is_data_url for reference in found] == [False, False, True]


def test_the_json_schema_has_every_field_and_its_limits() -> None:
    schema = input_json_schema(SPEC)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["prompt"]
    assert set(schema["properties"]) == set(resolved())
    references = schema["properties"]["reference_images"]
    assert references["maxItems"] == 2


@given(
    st.dictionaries(
        st.sampled_from([*resolve_input(SPEC, {"prompt": "x"}), "oops"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.sampled_from([PICTURE, CLIP, SHORT, "grey", "layout", "resample"])
        | st.lists(st.floats(0, 2) | st.sampled_from([PICTURE, OTHER]), max_size=4)
        | st.dictionaries(st.sampled_from(["left", "start"]), st.floats(0, 1), max_size=2),
        max_size=6,
    )
)
@settings(deadline=None)
def test_anything_is_either_resolved_or_refused_by_name(raw: dict[str, Any]) -> None:
    try:
        made = resolve_input(SPEC, {"prompt": "x", **raw}, FILES)
    except InvalidInput as error:
        refused = error.param
    else:
        refused = None
        assert resolve_input(SPEC, made, FILES) == made
    assert refused is None or refused.startswith("input.")
