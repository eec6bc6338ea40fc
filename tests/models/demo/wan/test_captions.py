"""Captions of the video demo say what they ask for, and training never meets the examination."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from models.demo.grammar import CORE_COLOURS, CORE_SHAPES
from models.demo.wan.captions import (
    HELD_OUT_PAIRS,
    all_motions,
    caption,
    held_out_prompts,
    is_held_out,
    random_motion,
    training_prompt,
)
from models.demo.wan.clip_judge import DIRECTIONS, Motion
from models.demo.wan.clips import SIZES


def test_the_plain_form_is_that_of_the_core_grammar():
    asked = Motion("circle", "red", "blue", "left")
    text = caption(asked, random.Random(0), plain=True)
    assert text == "a red circle moving left on a blue background"
    asked = Motion("square", "orange", "white", "up")
    assert caption(asked, random.Random(0), plain=True).startswith("an orange square moving up")


def test_training_clips_never_show_what_is_examined():
    rng = random.Random(0)
    shown = {random_motion(rng)[0] for _ in range(4000)}
    examined = {prompt.asked for prompt in held_out_prompts(100)}
    assert shown.isdisjoint(examined)
    assert not any((motion.colour, motion.shape) in HELD_OUT_PAIRS for motion in shown)
    # Everything else is shown.
    assert shown == {motion for motion in all_motions() if not is_held_out(motion)}


def test_the_examination_is_fixed_and_asks_for_everything():
    prompts = held_out_prompts(100)
    assert prompts == held_out_prompts(100)
    assert len({prompt.text for prompt in prompts}) == 100
    assert {prompt.asked.shape for prompt in prompts} == set(CORE_SHAPES)
    assert {prompt.asked.colour for prompt in prompts} == set(CORE_COLOURS)
    assert {prompt.asked.direction for prompt in prompts} == set(DIRECTIONS)
    pairs = [(prompt.asked.colour, prompt.asked.shape) in HELD_OUT_PAIRS for prompt in prompts]
    assert sum(pairs) == 50


@pytest.mark.parametrize("seed", range(5))
def test_free_wordings_name_what_is_asked_and_nothing_else(seed):
    rng = random.Random(seed)
    for _ in range(200):
        motion, size = random_motion(rng)
        if rng.random() < 0.3:
            motion = replace(motion, colour=None)
        prompt = training_prompt(
            motion,
            size,
            rng,
            is_shown=rng.random() < 0.5,
            is_ground_shown=rng.random() < 0.5,
        )
        assert "None" not in prompt.text
        asked = prompt.asked
        for name in ("shape", "colour", "background", "direction"):
            assert getattr(asked, name) in (None, getattr(motion, name))
        assert prompt.size in (None, size)
        if asked.background is None:
            assert "background" not in prompt.text
        if asked.direction is None:
            assert not set(prompt.text.split()) & {"left", "right", "up", "down", "top", "bottom"}
        if prompt.size is None:
            assert not set(prompt.text.split()) & {*SIZES, "tiny", "huge", "big", "little"}


def test_only_clips_shown_some_other_way_may_go_without_a_look():
    rng = random.Random(0)
    motion = Motion("circle", "red", "blue", "left")
    told = [training_prompt(motion, "small", rng).asked for _ in range(300)]
    shown = [training_prompt(motion, "small", rng, is_shown=True).asked for _ in range(300)]
    assert all(asked.shape or asked.colour for asked in told)
    assert any(asked.shape is None and asked.colour is None for asked in shown)
