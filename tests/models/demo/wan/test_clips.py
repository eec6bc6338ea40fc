"""Drawn clips show their scenes, whole and in even motion."""

from __future__ import annotations

import math
import random

import torch

from models.demo.colours import COLOURS
from models.demo.wan.captions import all_motions
from models.demo.wan.clip_judge import judge_clip
from models.demo.wan.clips import (
    FRAMES,
    SIDE,
    SIZES,
    ClipScene,
    draw_references,
    draw_scenes,
    random_scene,
    random_tint,
)


def test_the_judge_reads_what_was_drawn():
    rng = random.Random(0)
    motions = rng.sample(list(all_motions()), 12)
    sizes = [rng.choice(tuple(SIZES)) for _ in motions]
    clips = draw_scenes(
        [random_scene(motion, size, rng) for motion, size in zip(motions, sizes, strict=True)]
    )
    assert clips.shape == (12, 3, FRAMES, SIDE, SIDE)
    for motion, clip in zip(motions, clips, strict=True):
        verdict = judge_clip(clip, motion)
        assert verdict.passed, verdict.reasons


def test_a_shape_moves_evenly_from_its_start_along_its_way():
    scene = ClipScene("circle", "white", "black", (20.0, 32.0), (24.0, 0.0), 10.0)
    clip = draw_scenes([scene])[0]
    light = (clip[0] + 1).double()
    light -= light.min()
    columns = torch.arange(SIDE) + 0.5
    centers = (light.sum(1) * columns).sum(1) / light.sum((1, 2))
    assert torch.allclose(centers, torch.linspace(20, 44, FRAMES).double(), atol=0.05)


def test_scenes_lie_inside_the_picture():
    rng = random.Random(1)
    for motion in list(all_motions())[::7]:
        for size in SIZES:
            scene = random_scene(motion, size, rng)
            for axis in (0, 1):
                ends = (scene.start[axis], scene.start[axis] + scene.way[axis])
                # A large shape may reach over the edge by no more than a few pixels.
                assert min(ends) - scene.radius > -4
                assert max(ends) + scene.radius < SIDE + 4


def test_a_tint_is_far_from_the_colours_it_must_not_be_taken_for_and_is_drawn():
    rng = random.Random(3)
    for _ in range(50):
        tint = random_tint(["red", "blue"], rng)
        levels = [(value + 1) * 127.5 for value in tint]
        assert all(math.dist(levels, COLOURS[name]) > 80 for name in ("red", "blue"))
        scene = ClipScene("circle", None, "white", (32.0, 32.0), (0.0, 0.0), 14.0, tint)
        for picture in (draw_scenes([scene])[0][:, 0], draw_references([scene], [14.0])[0]):
            assert torch.allclose(picture[:, SIDE // 2, SIDE // 2], torch.tensor(tint), atol=1e-5)


def test_a_reference_shows_the_shape_in_the_middle_of_white():
    scene = ClipScene("square", "red", "blue", (20.0, 20.0), (24.0, 0.0), 10.0)
    picture = draw_references([scene], [16.0])[0]
    assert torch.equal(picture[:, 0, 0], torch.ones(3))
    middle = (picture[:, SIDE // 2, SIDE // 2] + 1) * 127.5
    assert torch.allclose(middle, torch.tensor(COLOURS["red"]).float(), atol=0.01)
