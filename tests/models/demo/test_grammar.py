"""Captions: repeatable, true to what they ask for, and apart from the examination."""

from __future__ import annotations

import random

import pytest

from models.demo.grammar import (
    CORE_COLOURS,
    CORE_SHAPES,
    HELD_OUT_PAIRS,
    POSITIONS,
    SIZES,
    Asked,
    Grammar,
    caption,
    held_out_prompts,
    is_held_out,
    random_scene,
    training_prompt,
)

GRAMMARS: tuple[Grammar, ...] = ("core", "full")


def test_one_seed_gives_one_series_of_captions() -> None:
    def series(seed: int) -> list[str]:
        rng = random.Random(seed)
        return [training_prompt(rng).text for _ in range(50)]

    assert series(3) == series(3)
    assert series(3) != series(4)


def test_training_never_meets_a_held_out_pair() -> None:
    rng = random.Random(0)
    prompts = [training_prompt(rng) for _ in range(5000)]
    assert not any(is_held_out(prompt.asked) for prompt in prompts)
    seen = {(prompt.asked.colour, prompt.asked.shape) for prompt in prompts}
    assert len(seen) == 10 * 7 - len(HELD_OUT_PAIRS)


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_the_examination_is_fixed_distinct_and_half_of_held_out_pairs(grammar: Grammar) -> None:
    prompts = held_out_prompts(grammar)
    assert prompts == held_out_prompts(grammar)
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 300
    assert sum(is_held_out(prompt.asked) for prompt in prompts) == 150
    assert held_out_prompts(grammar, seed=1) != prompts


def test_the_core_examination_keeps_to_core_shapes_and_colours_and_asks_no_more() -> None:
    for prompt in held_out_prompts("core"):
        asked = prompt.asked
        assert asked.shape in CORE_SHAPES
        assert {asked.colour, asked.background} <= set(CORE_COLOURS)
        assert asked.size is None
        assert asked.position is None


def test_the_full_examination_asks_for_every_size_and_position() -> None:
    asked = [prompt.asked for prompt in held_out_prompts("full")]
    assert {a.size for a in asked} == {None, *SIZES}
    assert {a.position for a in asked} == {None, *POSITIONS}


def test_the_plain_form_reads_as_the_core_grammar_says() -> None:
    rng = random.Random(0)
    assert (
        caption(Asked("circle", "red", "blue"), rng, plain=True)
        == "a red circle on a blue background"
    )
    assert (
        caption(Asked("square", "orange", "white"), rng, plain=True)
        == "an orange square on a white background"
    )


def test_colours_of_shape_and_background_always_differ() -> None:
    rng = random.Random(1)
    for _ in range(500):
        prompt = training_prompt(rng)
        scene = random_scene(prompt.asked, rng)
        assert scene.colour != scene.background


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("position", POSITIONS)
def test_every_scene_lies_inside_the_picture(size: str, position: str) -> None:
    rng = random.Random(2)
    for _ in range(20):
        scene = random_scene(Asked("circle", "red", "blue", size, position), rng)
        for center in scene.center:
            assert scene.radius < center < 1 - scene.radius


def test_what_a_caption_leaves_open_varies_and_what_it_says_hardly_does() -> None:
    rng = random.Random(3)
    free = [random_scene(Asked("star", "red", "blue"), rng) for _ in range(50)]
    fixed = [random_scene(Asked("star", "red", "blue", "small", "top"), rng) for _ in range(50)]

    def spread(values: list[float]) -> float:
        return max(values) - min(values)

    assert spread([scene.radius for scene in free]) > 0.015
    assert spread([scene.center[0] for scene in free]) > 0.03
    assert spread([scene.radius for scene in fixed]) < 0.01
    assert spread([scene.center[0] for scene in fixed]) < 0.02
