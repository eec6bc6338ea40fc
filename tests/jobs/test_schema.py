"""Request validation: what passes is complete, what is refused is named with its range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.model_spec import FloatParameter, IntParameter, ModelSpec
from jobs.errors import InvalidInput
from jobs.schema import input_json_schema, resolve_input, seeds, total_steps

SPEC = ModelSpec(
    id="sana-test",
    family="sana",
    width=IntParameter(default=256, minimum=64, maximum=512, multiple_of=32),
    height=IntParameter(default=256, minimum=64, maximum=512, multiple_of=32),
    num_inference_steps=IntParameter(default=20, minimum=1, maximum=100),
    guidance_scale=FloatParameter(default=4.5, minimum=0, maximum=20),
    samplers=("dpm-solver++", "flow-euler"),
    max_prompt_chars=100,
    source=Path("nowhere"),
)


def test_defaults_fill_every_field() -> None:
    resolved = resolve_input(SPEC, {"prompt": "a red circle", "seed": 3})
    assert resolved == {
        "prompt": "a red circle",
        "negative_prompt": "",
        "width": 256,
        "height": 256,
        "num_inference_steps": 20,
        "guidance_scale": 4.5,
        "num_images": 1,
        "seed": 3,
        "sampler": "dpm-solver++",
        "output_format": "png",
        "output_quality": 90,
    }
    assert total_steps(resolved) == 20


def test_a_resolved_input_resolves_to_itself() -> None:
    resolved = resolve_input(SPEC, {"prompt": "a red circle", "output_format": "webp"})
    assert resolve_input(SPEC, resolved) == resolved


def test_absent_seeds_are_drawn_and_differ() -> None:
    seeds = {resolve_input(SPEC, {"prompt": "x"})["seed"] for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("num_images", [1, 2, 8])
def test_every_image_has_a_seed_that_can_be_submitted_again(num_images: int) -> None:
    raw = {"prompt": "x", "num_images": num_images}
    last = 2**32 - num_images
    resolved = resolve_input(SPEC, {**raw, "seed": last})
    for index in range(num_images):
        own = {**resolved, "seed": resolved["seed"] + index, "num_images": 1}
        assert resolve_input(SPEC, own) == own
    with pytest.raises(InvalidInput, match=f"whole number from 0 to {last}") as refusal:
        resolve_input(SPEC, {**raw, "seed": last + 1})
    assert refusal.value.param == "input.seed"


def test_a_drawn_seed_leaves_room_for_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds.secrets, "randbelow", lambda bound: bound - 1)
    resolved = resolve_input(SPEC, {"prompt": "x", "num_images": 8})
    assert resolved["seed"] + 8 - 1 == 2**32 - 1


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("width", 100, "from 64 to 512 in steps of 32"),
        ("width", 32, "from 64 to 512"),
        ("height", 544, "from 64 to 512"),
        ("width", "256", "a whole number"),
        ("width", 256.0, "a whole number"),
        ("width", True, "a whole number"),
        ("width", None, "a whole number"),
        ("width", 10**400, "a whole number from 64 to 512"),
        ("num_inference_steps", 0, "from 1 to 100"),
        ("num_inference_steps", -3, "from 1 to 100"),
        ("guidance_scale", float("nan"), "a number from 0 to 20"),
        ("guidance_scale", float("inf"), "a number from 0 to 20"),
        ("guidance_scale", 10**400, "a number from 0 to 20"),
        ("guidance_scale", "4", "a number from 0 to 20"),
        ("guidance_scale", 20.5, "a number from 0 to 20"),
        ("num_images", 9, "from 1 to 8"),
        ("seed", -1, "from 0 to 4294967295"),
        ("seed", 2**32, "from 0 to 4294967295"),
        ("seed", 1.5, "a whole number"),
        ("prompt", "", "1 to 100 characters"),
        ("prompt", " \n\t", "1 to 100 characters"),
        ("prompt", "x" * 101, "1 to 100 characters"),
        ("prompt", "x" * 100_000, "got 100000 characters"),
        ("prompt", "nul \x00", "NUL"),
        ("prompt", "lone \ud800", "Unicode"),
        ("prompt", ["a"], "got an array"),
        ("prompt", {"a": 1}, "got an object"),
        ("negative_prompt", "x" * 101, "at most 100 characters"),
        ("negative_prompt", None, "got null"),
        ("sampler", "ddim", "one of dpm-solver++, flow-euler"),
        ("sampler", 3, "one of dpm-solver++, flow-euler"),
        ("output_format", "gif", "one of png, jpeg, webp"),
        ("output_quality", 0, "from 1 to 100"),
    ],
)
def test_a_refusal_names_the_field_and_what_it_may_hold(field: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        resolve_input(SPEC, {"prompt": "x", field: value})
    assert refusal.value.param == f"input.{field}"
    assert f"input.{field}" in refusal.value.message
    assert words in refusal.value.message
    assert len(refusal.value.message) < 300


def test_a_range_of_one_value_is_told_as_that_value() -> None:
    spec = SPEC.model_copy(
        update={
            "width": IntParameter(default=256, minimum=256, maximum=256, multiple_of=32),
            "guidance_scale": FloatParameter(default=4.5, minimum=4.5, maximum=4.5),
        }
    )
    with pytest.raises(InvalidInput) as refusal:
        resolve_input(spec, {"prompt": "x", "width": 512, "guidance_scale": 2})
    assert {error.message for error in refusal.value.errors} == {
        "input.width must be 256; got 512",
        "input.guidance_scale must be 4.5; got 2",
    }


def test_a_missing_prompt_is_said_to_be_required() -> None:
    with pytest.raises(InvalidInput, match=r"input\.prompt is required"):
        resolve_input(SPEC, {})


def test_an_unknown_field_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="not a parameter of sana-test; it takes prompt,"):
        resolve_input(SPEC, {"prompt": "x", "steps": 20})


def test_all_bad_fields_are_listed() -> None:
    with pytest.raises(InvalidInput) as refusal:
        resolve_input(SPEC, {"prompt": "", "width": 1, "colour": "red"})
    assert {error.param for error in refusal.value.errors} == {
        "input.prompt",
        "input.width",
        "input.colour",
    }


def test_an_input_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidInput, match="input must be an object"):
        resolve_input(SPEC, ["prompt"])  # type: ignore[arg-type]


@given(
    st.dictionaries(
        st.sampled_from(["prompt", "width", "seed", "guidance_scale", "sampler", "oops"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    )
)
@settings(deadline=None)
def test_anything_is_either_resolved_or_refused_by_name(raw: dict[str, Any]) -> None:
    refused = None
    try:
        resolved = resolve_input(SPEC, raw)
    except InvalidInput as error:
        refused = error.param
    if refused is None:
        assert resolve_input(SPEC, resolved) == resolved
    else:
        assert refused.removeprefix("input.") in {*raw, "prompt"}


def test_the_json_schema_states_the_ranges() -> None:
    schema = input_json_schema(SPEC)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["prompt"]
    width = schema["properties"]["width"]
    assert (width["minimum"], width["maximum"], width["multipleOf"], width["default"]) == (
        64,
        512,
        32,
        256,
    )
    assert schema["properties"]["prompt"]["maxLength"] == 100
