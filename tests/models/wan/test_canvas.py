"""The canvas: every task's source lands where, when and how it should."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from models.pipeline import Clip, Outpaint, VideoRequest
from models.wan import fitting
from models.wan.canvas import paint
from models.wan.fitting import fill

REQUEST = VideoRequest(
    prompt="",
    negative_prompt="",
    width=32,
    height=16,
    num_frames=9,
    fps=16.0,
    num_inference_steps=4,
    guidance_scale=5.0,
    flow_shift=3.0,
    conditioning_scale=(1.0,),
    seed=0,
    sampler="unipc",
)


def request(**changes):
    return dataclasses.replace(REQUEST, **changes)


def clip(count=9, height=16, width=32, fps=16.0, seed=0):
    rng = np.random.default_rng(seed)
    return Clip(rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8), fps)


def plain(value, count=1, height=16, width=32):
    return Clip(np.full((count, height, width, 3), value, dtype=np.uint8), 16.0)


def in_model_range(frames):
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1


def test_text_alone_leaves_everything_unknown_and_to_be_made():
    canvas = paint(request())
    assert canvas.video.shape == (3, 9, 16, 32)
    assert not canvas.video.any()
    assert canvas.mask.shape == (1, 9, 16, 32)
    assert canvas.mask.eq(1).all()
    assert canvas.references == ()


def test_a_control_of_the_right_size_guides_every_frame_unchanged():
    source = clip()
    canvas = paint(request(control_video=source))
    torch.testing.assert_close(canvas.video, in_model_range(source.frames))
    assert canvas.mask.eq(1).all()


def test_a_grey_control_has_the_luma_in_all_three_channels():
    source = clip()
    canvas = paint(request(control_video=source, control="grey"))
    red, green, blue = in_model_range(source.frames)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    for channel in canvas.video:
        torch.testing.assert_close(channel, luma, atol=1e-5, rtol=0)


def test_a_white_mask_turns_the_source_exactly_mid_grey_and_keeps_the_rest():
    source, white = clip(), np.zeros((1, 16, 32, 3), dtype=np.uint8)
    white[:, 4:8, 10:20] = 255
    canvas = paint(request(video=source, mask=Clip(white, 16.0)))
    made = torch.zeros(9, 16, 32, dtype=torch.bool)
    made[:, 4:8, 10:20] = True
    assert canvas.mask[0].bool().equal(made)
    assert canvas.video[:, made].eq(0).all()
    kept = in_model_range(source.frames)
    torch.testing.assert_close(canvas.video[:, ~made], kept[:, ~made])


@pytest.mark.parametrize(("level", "made"), [(127, 0.0), (128, 1.0)])
def test_masks_are_cut_at_one_half(level, made):
    canvas = paint(request(video=clip(), mask=plain(level)))
    assert canvas.mask.eq(made).all()


def test_a_mask_of_another_size_and_length_is_stretched_over_its_source():
    frames = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    frames[0, :, :4] = 255
    frames[2] = 255
    canvas = paint(request(video=clip(), mask=Clip(frames, 5.0)))
    first, middle, last = canvas.mask[0, 0], canvas.mask[0, 4], canvas.mask[0, 8]
    assert first[:, :15].eq(1).all()
    assert first[:, 17:].eq(0).all()
    assert middle.eq(0).all()
    assert last.eq(1).all()


def test_outpainting_keeps_the_source_inside_and_makes_the_rest():
    beyond = Outpaint(left=0.5, right=0.5, top=0.0, bottom=1.0)
    canvas = paint(request(video=plain(200, count=9, height=8, width=16), outpaint=beyond))
    inside = torch.zeros(16, 32, dtype=torch.bool)
    inside[:8, 8:24] = True
    assert canvas.mask[0, 3].bool().equal(~inside)
    assert canvas.video[:, 3, inside].sub(200 / 127.5 - 1).abs().max() < 1e-5
    assert canvas.video[:, 3, ~inside].eq(0).all()


def test_first_and_last_pictures_are_kept_and_all_between_is_made():
    canvas = paint(request(first_clip=plain(255), last_clip=plain(0)))
    assert canvas.mask[0].amax((1, 2)).tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0]
    assert canvas.video[:, 0].eq(1).all()
    assert canvas.video[:, -1].eq(-1).all()
    assert not canvas.video[:, 1:-1].any()


def test_a_clip_is_extended_after_its_own_frames_at_its_own_speed():
    source = clip(count=2, fps=8.0)
    canvas = paint(request(first_clip=source))
    # Twice the rate: each frame of the source is shown twice.
    assert canvas.mask[0].amax((1, 2)).tolist() == [0] * 4 + [1] * 5
    shown = in_model_range(source.frames)[:, [0, 0, 1, 1]]
    torch.testing.assert_close(canvas.video[:, :4], shown)
    before = paint(request(last_clip=source))
    assert before.mask[0].amax((1, 2)).tolist() == [1] * 5 + [0] * 4
    torch.testing.assert_close(before.video[:, 5:], shown)


def test_what_is_made_joins_the_last_frame_of_the_clip_before_and_the_first_of_that_after():
    # Twenty-four frames a second on a canvas of sixteen: every third frame is left out.
    source = clip(count=6, fps=24.0)
    canvas = paint(request(first_clip=source, num_frames=13))
    assert canvas.mask[0].amax((1, 2)).tolist() == [0] * 4 + [1] * 9
    last = in_model_range(source.frames)[:, -1]
    torch.testing.assert_close(canvas.video[:, 3], last)
    canvas = paint(request(last_clip=source, num_frames=13))
    assert canvas.mask[0].amax((1, 2)).tolist() == [1] * 9 + [0] * 4
    torch.testing.assert_close(canvas.video[:, 9], in_model_range(source.frames)[:, 0])


def test_a_clip_longer_than_the_result_is_continued_from_its_end():
    source = clip(count=40)
    canvas = paint(request(first_clip=source))
    assert canvas.mask[0].amax((1, 2)).tolist() == [0] * 5 + [1] * 4
    torch.testing.assert_close(canvas.video[:, :5], in_model_range(source.frames[-5:]))
    assert not canvas.video[:, 5:].any()


def test_a_clip_longer_than_the_result_is_led_up_to_at_its_beginning():
    source = clip(count=9)
    canvas = paint(request(last_clip=source))
    assert canvas.mask[0].amax((1, 2)).tolist() == [1] * 4 + [0] * 5
    torch.testing.assert_close(canvas.video[:, 4:], in_model_range(source.frames[:5]))
    assert not canvas.video[:, :4].any()


@pytest.mark.parametrize(
    ("lengths", "kept"),
    [((7, 3), (2, 3)), ((7, 8), (2, 3)), ((1, 9), (1, 4)), ((9, 1), (4, 1)), ((2, 2), (2, 2))],
)
def test_two_clips_share_what_is_kept_and_leave_one_latent_to_make(lengths, kept):
    before, after = clip(count=lengths[0]), clip(count=lengths[1], seed=1)
    canvas = paint(request(first_clip=before, last_clip=after))
    first, last = kept
    made = 9 - first - last
    assert made >= 4
    assert canvas.mask[0].amax((1, 2)).tolist() == [0] * first + [1] * made + [0] * last
    torch.testing.assert_close(canvas.video[:, :first], in_model_range(before.frames[-first:]))
    torch.testing.assert_close(canvas.video[:, 9 - last :], in_model_range(after.frames[:last]))


def test_kept_frames_that_leave_nothing_to_make_are_refused_by_name():
    with pytest.raises(ValueError, match=r"first_clip: 1 of 1 frames would be kept"):
        paint(request(first_clip=clip(), num_frames=1))
    with pytest.raises(ValueError, match=r"last_clip: 1 of 1 frames would be kept"):
        paint(request(last_clip=clip(), num_frames=1))
    with pytest.raises(ValueError, match=r"last_clip: 2 of 1 frames would be kept"):
        paint(request(first_clip=clip(), last_clip=clip(), num_frames=1))


def test_a_source_plays_at_its_own_speed_unless_it_is_to_be_resampled():
    source = clip(count=33)
    known = in_model_range(source.frames)
    trimmed = paint(request(control_video=source))
    torch.testing.assert_close(trimmed.video, known[:, :9])
    resampled = paint(request(control_video=source, frame_policy="resample"))
    torch.testing.assert_close(resampled.video, known[:, ::4])


def test_a_resampled_source_is_spread_over_the_clip_and_its_mask_with_it():
    source = clip(count=17)
    black_then_white = np.zeros((17, 16, 32, 3), dtype=np.uint8)
    black_then_white[8:] = 255
    canvas = paint(
        request(video=source, mask=Clip(black_then_white, 16.0), frame_policy="resample")
    )
    assert canvas.mask[0].amax((1, 2)).tolist() == [0] * 4 + [1] * 5
    kept = in_model_range(source.frames)[:, [0, 2, 4, 6]]
    torch.testing.assert_close(canvas.video[:, :4], kept)
    assert not canvas.video[:, 4:].any()


def test_a_resampled_control_shorter_than_the_clip_guides_all_of_it():
    guide = clip(count=3)
    canvas = paint(request(control_video=guide, frame_policy="resample"))
    shown = in_model_range(guide.frames)[:, [0, 0, 0, 1, 1, 1, 2, 2, 2]]
    torch.testing.assert_close(canvas.video, shown)


def test_a_mask_clip_moves_with_its_source():
    white = np.zeros((9, 16, 32, 3), dtype=np.uint8)
    for index, frame in enumerate(white):
        frame[:, 3 * index : 3 * index + 4] = 255
    source = clip()
    canvas = paint(request(video=source, mask=Clip(white, 16.0)))
    made = torch.from_numpy(white[..., 0] > 0)
    assert canvas.mask[0].bool().equal(made)
    torch.testing.assert_close(canvas.video[:, ~made], in_model_range(source.frames)[:, ~made])
    assert canvas.video[:, made].eq(0).all()


def test_of_a_source_longer_than_the_clip_its_mask_is_cut_as_it_is():
    white = np.zeros((20, 16, 32, 3), dtype=np.uint8)
    white[[0, 8, 9, 19]] = 255
    canvas = paint(request(video=clip(count=20), mask=Clip(white, 16.0)))
    assert canvas.mask[0].amax((1, 2)).tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 1]


def test_a_source_of_another_shape_is_cut_and_its_mask_with_it():
    # Twice as wide as the canvas: a quarter goes on either side.
    frames = np.zeros((9, 16, 64, 3), dtype=np.uint8)
    frames[:, :, 16:32] = 200
    frames[:, :, 32:48] = 100
    white = np.zeros((1, 32, 128, 3), dtype=np.uint8)
    white[:, :, :64] = 255
    canvas = paint(request(video=Clip(frames, 16.0), mask=Clip(white, 16.0)))
    assert canvas.mask[..., :16].eq(1).all()
    assert canvas.mask[..., 16:].eq(0).all()
    assert canvas.video[..., 17:].sub(100 / 127.5 - 1).abs().max() < 1e-5
    assert canvas.video[..., :16].eq(0).all()


def test_a_first_and_a_last_clip_of_another_size_are_fitted_to_the_canvas():
    before, after = plain(200, count=2, height=64, width=32), plain(50, count=3, height=5, width=9)
    canvas = paint(request(first_clip=before, last_clip=after))
    assert canvas.mask[0].amax((1, 2)).tolist() == [0] * 2 + [1] * 4 + [0] * 3
    assert canvas.video[:, :2].sub(200 / 127.5 - 1).abs().max() < 1e-5
    assert canvas.video[:, 6:].sub(50 / 127.5 - 1).abs().max() < 1e-5


def test_a_control_and_a_first_frame_compose():
    source = clip()
    canvas = paint(request(control_video=source, first_clip=plain(255)))
    assert canvas.video[:, 0].eq(1).all()
    torch.testing.assert_close(canvas.video[:, 1:], in_model_range(source.frames)[:, 1:])
    assert canvas.mask[0].amax((1, 2)).tolist() == [0] + [1] * 8


def test_a_control_guides_what_a_mask_asks_to_be_made():
    source, guide = clip(), clip(seed=1)
    white = np.zeros((1, 16, 32, 3), dtype=np.uint8)
    white[:, 4:8, 10:20] = 255
    canvas = paint(request(video=source, mask=Clip(white, 16.0), control_video=guide))
    made = torch.zeros(9, 16, 32, dtype=torch.bool)
    made[:, 4:8, 10:20] = True
    assert canvas.mask[0].bool().equal(made)
    torch.testing.assert_close(canvas.video[:, made], in_model_range(guide.frames)[:, made])
    torch.testing.assert_close(canvas.video[:, ~made], in_model_range(source.frames)[:, ~made])


def test_a_short_source_leaves_the_frames_after_it_to_the_model():
    canvas = paint(request(video=clip(count=4), mask=plain(0)))
    assert canvas.mask[0].amax((1, 2)).tolist() == [0] * 4 + [1] * 5
    assert not canvas.video[:, 4:].any()


@pytest.mark.parametrize("size", [(1, 1), (7, 90), (200, 3), (16, 32)])
def test_sources_of_any_size_cover_the_canvas(size):
    frames = fill(np.full((2, *size, 3), 100, dtype=np.uint8), (16, 32))
    assert frames.shape == (3, 2, 16, 32)
    assert frames.sub(100 / 127.5 - 1).abs().max() < 1e-5


def test_a_wide_source_is_cut_about_its_centre():
    frames = np.zeros((1, 16, 64, 3), dtype=np.uint8)
    frames[:, :, 16:48] = 255
    filled = fill(frames, (16, 32))
    assert filled.eq(1).all()


def test_references_stand_whole_in_the_middle_of_white_in_the_order_given():
    black, half = plain(0, height=4, width=4), plain(100, height=16, width=8)
    first, second = paint(request(reference_images=(black, half))).references
    assert first[:, :, 8:24].eq(-1).all()
    assert first[:, :, :8].eq(1).all()
    assert first[:, :, 24:].eq(1).all()
    assert second[:, :, 12:20].sub(100 / 127.5 - 1).abs().max() < 1e-5
    assert second[:, :, :12].eq(1).all()


@pytest.fixture
def resized(monkeypatch) -> list[torch.Size]:
    """Shapes of all frames that were resized."""
    shapes = []
    interpolate = fitting.F.interpolate

    def noted(*arguments, **options):
        shapes.append((result := interpolate(*arguments, **options)).shape)
        return result

    monkeypatch.setattr(fitting.F, "interpolate", noted)
    return shapes


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_strips_take_no_more_memory_than_a_few_canvases(resized, size):
    white = np.full((1, *size, 3), 255, dtype=np.uint8)
    canvas = paint(request(video=Clip(white, 16.0), mask=Clip(white, 16.0)))
    assert canvas.mask[:, 0].eq(1).all()
    assert max(shape.numel() for shape in resized) <= 3 * 4 * 16 * 32


def test_a_long_strip_shows_its_middle():
    frames = np.zeros((1, 1, 4001, 3), dtype=np.uint8)
    frames[:, :, 1997:2004] = 255
    assert fill(frames, (16, 32)).eq(1).all()


def test_one_picture_as_mask_is_resized_once(resized):
    canvas = paint(request(video=clip(), mask=plain(255, height=64, width=64)))
    assert canvas.mask.eq(1).all()
    assert len(resized) == 1
