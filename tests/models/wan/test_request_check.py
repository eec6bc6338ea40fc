"""Requests outside of what a model offers are refused before anything is computed, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.model_spec import ModelSpec
from models.catalogue import describe
from models.wan.request_check import check_request
from tests.models.wan.tiny_checkpoint import clip, request


@pytest.fixture(scope="module")
def spec(tiny_wan: Path) -> ModelSpec:
    return describe(tiny_wan)


def test_numbers_between_whole_ones_are_taken(spec):
    check_request(request(guidance_scale=4.5, flow_shift=2.25, fps=23.976), spec)
    check_request(request(conditioning_scale=(0.3,)), spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 40}, "width is 40, allowed: 16..128 in steps of 16"),
        ({"height": 160}, "height is 160, allowed: 16..128 in steps of 16"),
        ({"num_frames": 8}, "num_frames is 8, expected 4n"),
        ({"num_frames": 85}, "num_frames is 85, allowed: 1..81"),
        ({"fps": 0.0}, "fps is 0.0, allowed: 1.0..60.0"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0, allowed: 1..100"),
        ({"flow_shift": 0.0}, "flow_shift is 0.0, allowed"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5, allowed"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan, allowed"),
        ({"sampler": "ddim"}, "sampler is 'ddim', allowed: unipc"),
        ({"conditioning_scale": (1.0, 1.0)}, "conditioning_scale has 2 entries, expected 1 or 1"),
        ({"conditioning_scale": (9.0,)}, "conditioning_scale is 9.0, allowed: 0.0..2.0"),
        ({"reference_images": (clip(1),) * 5}, "reference_images: 5 were given, allowed: 4"),
    ],
)
def test_fields_outside_the_limits_are_named(spec, changes, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        check_request(request(**changes), spec)


def test_frames_and_size_together_have_a_limit(spec):
    video = spec.video.model_copy(update={"max_pixels": 9 * 32 * 48 - 1})
    limited = spec.model_copy(update={"video": video})
    with pytest.raises(ValueError, match="num_frames is 9 of 48x32: 13824 pixels, allowed: 13823"):
        check_request(request(), limited)
