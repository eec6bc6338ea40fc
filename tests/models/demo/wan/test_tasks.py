"""Canvases of the training tasks hide and show what each task is about."""

from __future__ import annotations

import random

import pytest
import torch

from models.demo.wan.captions import random_motion
from models.demo.wan.clips import FRAMES, SIDE, draw_references, draw_scenes, random_scene
from models.demo.wan.tasks import TASKS, cover, empty_canvas


def sample(seed):
    rng = random.Random(seed)
    motion, size = random_motion(rng)
    scene = random_scene(motion, size, rng)
    return draw_scenes([scene])[0], draw_references([scene], [20.0])[0], scene, rng


@pytest.mark.parametrize("task", TASKS)
def test_masks_are_black_where_the_clip_is_kept_and_grey_lies_under_white(task):
    for seed in range(8):
        clip, reference, scene, rng = sample(seed)
        canvas = cover(task, clip, reference, scene, rng)
        assert canvas.video.shape == clip.shape
        assert canvas.mask.unique().tolist() in ([1.0], [0.0, 1.0])
        kept = (canvas.mask == 0).expand_as(clip)
        assert torch.equal(canvas.video[kept], clip[kept])
        if task != "grey":
            assert not canvas.video[~kept].any()


def test_ends_keep_whole_frames():
    clip, reference, scene, rng = sample(0)
    kept = cover("ends", clip, reference, scene, rng).mask.flatten(2).sum(2)[0] == 0
    assert kept.tolist() == [True] + [False] * (FRAMES - 2) + [True]


def test_some_boxes_hide_the_whole_way_of_the_shape():
    hidden = 0
    for seed in range(20):
        clip, reference, scene, rng = sample(seed)
        canvas = cover("inpaint", clip, reference, scene, rng)
        ground = clip[:, 0, 0, 0]
        shape = (clip - ground[:, None, None, None]).abs().sum(0) > 0.02
        hidden += not (shape & (canvas.mask[0] == 0)).any()
    assert 5 <= hidden < 20


def test_the_grey_clip_is_the_luma_of_the_clip_everywhere():
    clip, reference, scene, rng = sample(1)
    canvas = cover("grey", clip, reference, scene, rng)
    luma = 0.299 * clip[0] + 0.587 * clip[1] + 0.114 * clip[2]
    assert torch.allclose(canvas.video, luma.expand_as(clip))
    assert canvas.mask.all()


def test_a_reference_comes_beside_an_empty_clip():
    clip, reference, scene, rng = sample(2)
    canvas = cover("reference", clip, reference, scene, rng)
    assert torch.equal(canvas.references[0], reference)
    empty = empty_canvas()
    assert torch.equal(canvas.video, empty.video)
    assert torch.equal(canvas.mask, empty.mask)
    assert empty.mask.shape == (1, FRAMES, SIDE, SIDE)
    assert empty.references == ()
