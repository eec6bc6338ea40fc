"""The context: channels, references and mask lie where the model was trained to find them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import WanVACEPipeline

from models.wan.canvas import Canvas, paint
from models.wan.latent_shape import latent_frames
from models.wan.vace_context import ContextBuilder, fold_mask
from tests.models.wan.test_canvas import clip, plain, request


class PoolingEncoder:
    """Stands in for the autoencoder: the mean of what a latent covers, and a count of calls."""

    def __init__(self) -> None:
        self.encoded: list[torch.Tensor] = []

    def __call__(self, video):
        self.encoded.append(video)
        first, rest = video[:, :, :1], video[:, :, 1:]
        parts = [F.avg_pool3d(first, (1, 8, 8))]
        if rest.shape[2]:
            parts.append(F.avg_pool3d(rest, (4, 8, 8)))
        pooled = torch.cat(parts, dim=2)
        return torch.cat([pooled * (1 + index) for index in range(6)], dim=1)[:, :16]


def build(canvas: Canvas) -> tuple[torch.Tensor, PoolingEncoder]:
    encoder = PoolingEncoder()
    return ContextBuilder(encoder).build(canvas), encoder


def test_kept_and_made_parts_and_the_mask_fill_96_channels_in_this_order():
    white = np.zeros((1, 16, 32, 3), dtype=np.uint8)
    white[:, :8] = 255
    canvas = paint(request(control_video=clip()))
    canvas = Canvas(canvas.video, canvas.mask * 0, ())
    canvas.mask[:, :, :8] = 1
    context, encoder = build(canvas)
    assert context.shape == (1, 96, 3, 2, 4)
    kept, made = encoder.encoded
    assert not kept[:, :, :, :8].any()
    assert kept[0, :, :, 8:].equal(canvas.video[:, :, 8:])
    assert not made[:, :, :, 8:].any()
    assert made[0, :, :, :8].equal(canvas.video[:, :, :8])
    assert context[:, :16].equal(PoolingEncoder()(kept))
    assert context[:, 16:32].equal(PoolingEncoder()(made))
    assert context[:, 32:, :, 0].eq(1).all()
    assert context[:, 32:, :, 1].eq(0).all()


def test_references_come_first_in_the_order_given_with_nothing_to_make():
    black, white = plain(0, height=16, width=32), plain(255, height=16, width=32)
    context, _ = build(paint(request(reference_images=(black, white))))
    assert context.shape == (1, 96, 2 + 3, 2, 4)
    assert context[:, :3, 0].eq(-1).all()
    assert context[:, :3, 1].eq(1).all()
    assert not context[:, 16:, :2].any()
    assert context[:, 32:, 2:].eq(1).all()


def test_grey_clips_are_encoded_once_for_each_shape():
    encoder = PoolingEncoder()
    builder = ContextBuilder(encoder)
    for _ in range(3):
        builder.build(paint(request()))
    assert len(encoder.encoded) == 1
    builder.build(paint(request(num_frames=5)))
    assert len(encoder.encoded) == 2
    builder.build(paint(request(control_video=clip())))
    assert len(encoder.encoded) == 3


def test_the_cache_of_grey_clips_is_bounded():
    encoder = PoolingEncoder()
    builder = ContextBuilder(encoder)
    for repetition in range(2):
        for frames in range(1, 41, 4):
            builder.build(paint(request(num_frames=frames)))
        assert len(encoder.encoded) == 10 * (repetition + 1)


def test_folded_masks_equal_the_reference():
    generator = torch.Generator().manual_seed(0)
    for frames in (1, 5, 9, 17, 33):
        mask = (torch.rand(1, 1, frames, 16, 32, generator=generator) > 0.5).float()
        pipeline = _reference_pipeline()
        expected = pipeline.prepare_masks(mask.expand(1, 3, -1, -1, -1), [[]])
        folded = fold_mask(mask)
        assert folded.shape == (1, 64, latent_frames(frames), 2, 4)
        assert folded.equal(expected)


def test_a_folded_mask_keeps_every_pixel_of_a_frame():
    mask = torch.arange(16 * 32.0).view(1, 1, 1, 16, 32)
    folded = fold_mask(mask)
    for row, column in ((0, 0), (3, 17), (15, 31)):
        channel = row % 8 * 8 + column % 8
        assert folded[0, channel, 0, row // 8, column // 8] == mask[0, 0, 0, row, column]


def _reference_pipeline():
    """Only what `prepare_masks` reads of a pipeline."""

    class Parts:
        vae_scale_factor_temporal = 4
        vae_scale_factor_spatial = 8

        class transformer:
            class config:
                patch_size = (1, 2, 2)

        transformer_2 = None
        prepare_masks = WanVACEPipeline.prepare_masks

    return Parts()
