"""How pictures and sources are resized: nothing of them is passed over, nothing warns."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan_vace import WanVACEPipeline
from diffusers.video_processor import VideoProcessor
from PIL import Image

from models.wan.fitting import fill, fill_mask, fit_inside

SIZE = (16, 32)
LEVEL = 2 / 255
"""One grey level in [-1, 1]."""


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized(picture, size, filter_):
    image = Image.fromarray(picture).resize(size[::-1], filter_)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


def fitted_by_diffusers(picture):
    parts = SimpleNamespace(video_processor=VideoProcessor(vae_scale_factor=8))
    *_, references = WanVACEPipeline.preprocess_conditions(
        parts, None, None, Image.fromarray(picture), 1, *SIZE, 1, torch.float32
    )
    return references[0][0]


def test_shrunk_references_and_sources_show_every_pixel_where_the_reference_skips_some():
    picture = noise(64, 128)
    reference, (source,) = fit_inside(picture, SIZE), fill(picture[None], SIZE).unbind(1)
    # Both passes of Pillow round to whole levels.
    for ours, filter_ in (
        (reference, Image.Resampling.BILINEAR),
        (source, Image.Resampling.BICUBIC),
    ):
        assert (ours - resized(picture, SIZE, filter_)).abs().max() <= 1.5 * LEVEL
    # One white column in four, which lies between those that diffusers looks at.
    stripes = np.zeros((64, 128, 3), np.uint8)
    stripes[:, ::4] = 255
    assert fitted_by_diffusers(stripes).eq(-1).all()
    for shown in (fit_inside(stripes, SIZE), fill(stripes[None], SIZE)[:, 0]):
        assert (shown[..., 1:-1] + 0.5).abs().max() < 0.25


def test_sides_of_a_reference_are_rounded_to_the_nearest_pixel():
    # At two fifths, as its width has it: 9.6 rows.
    black = np.zeros((24, 80, 3), np.uint8)
    heights = [
        shown[0, :, 16].lt(0).sum().item()
        for shown in (fit_inside(black, SIZE), fitted_by_diffusers(black))
    ]
    assert heights == [10, 9]


def test_a_picture_that_cannot_be_written_to_is_taken_without_a_warning():
    picture = noise(*SIZE)
    picture.flags.writeable = False
    torch.set_warn_always(True)
    try:
        fill(picture[None], SIZE)
        fill_mask(picture[None], SIZE, [0], SIZE)
        fit_inside(picture, SIZE)
    finally:
        torch.set_warn_always(False)
    with pytest.raises(ValueError, match="read-only"):
        picture[:] = 0
