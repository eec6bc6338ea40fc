"""What the fake model may be asked for, and how the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from config.model_spec import FakeDefaults, FloatParameter, IntParameter, ModelSpec
from jobs.errors import InvalidInput
from jobs.schema import input_json_schema, resolve_input

SIZE = IntParameter(default=64, minimum=8, maximum=512, multiple_of=8)
FIELDS: dict[str, Any] = {
    "id": "fake",
    "family": "fake",
    "width": SIZE,
    "height": SIZE,
    "num_inference_steps": IntParameter(default=20, minimum=1, maximum=100),
    "guidance_scale": FloatParameter(default=1.0, minimum=1.0, maximum=20.0),
    "samplers": ("flow-euler",),
    "source": Path("nowhere"),
}
SPEC = ModelSpec(**FIELDS, fake=FakeDefaults(step_seconds=0.5, memory_bytes=1024))


def test_defaults_come_from_the_spec() -> None:
    resolved = resolve_input(SPEC, {"prompt": "x"})
    assert resolve_input(SPEC, resolved) == resolved
    assert resolved["step_seconds"] == 0.5
    assert resolved["memory_bytes"] == 1024
    assert resolved["failure"] == "none"


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"step_seconds": -0.1}, "step_seconds", "a number from 0 to 3600"),
        ({"memory_bytes": 1.5}, "memory_bytes", "a whole number from 0 to 68719476736"),
        ({"failure": "explode"}, "failure", "one of none, error, out_of_memory, crash, hang"),
        ({"failure_step": 0}, "failure_step", "from 1 to num_inference_steps"),
        ({"failure_step": 21}, "failure_step", "num_inference_steps, which is 20; got 21"),
        ({"failure_above_images": 0}, "failure_above_images", "from 1 to 256, or null"),
        (
            {"failure": "crash", "failure_above_images": 2},
            "failure_above_images",
            "must be null unless failure is out_of_memory; failure is crash",
        ),
    ],
)
def test_refusals_name_the_field_and_what_it_may_hold(
    given: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        resolve_input(SPEC, {"prompt": "x", **given})
    assert refusal.value.param == f"input.{param}"
    assert words in str(refusal.value)


def test_other_models_take_none_of_it() -> None:
    plain = ModelSpec(**{**FIELDS, "family": "sana"})
    with pytest.raises(InvalidInput, match="is not a parameter"):
        resolve_input(plain, {"prompt": "x", "failure": "crash"})
    assert "failure" not in input_json_schema(plain)["properties"]


def test_only_the_fake_family_has_fake_defaults() -> None:
    for fields in ({**FIELDS}, {**FIELDS, "family": "sana", "fake": FakeDefaults()}):
        with pytest.raises(ValidationError, match="if and only if family is 'fake'"):
            ModelSpec(**fields)
