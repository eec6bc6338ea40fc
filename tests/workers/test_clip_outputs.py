"""Clips as files: what a player sees is the clip, and the recipe inside is the one written."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from engine_harness import CPU, claimed_clip
from numpy.typing import NDArray
from PIL import Image

from models.pipeline import Clip
from workers import video_outputs
from workers.outputs import RecipeNotFound, read_recipe
from workers.recipe import Recipes
from workers.thumbnails import STRIP_GAP, strip_indices, variants
from workers.video_outputs import EncodedClip, codec_of, encode_clip

FORMATS = ("mp4", "webm", "webp")


def moving_disc(num_frames: int = 9, height: int = 64, width: int = 96, fps: float = 16.0) -> Clip:
    """A soft orange disc that crosses a dark gradient from left to right."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    background = np.stack([30 + 60 * x / width, 40 + 50 * y / height, np.full_like(x, 90)], -1)
    frames = []
    for index in range(num_frames):
        centre = width * (0.2 + 0.6 * index / max(1, num_frames - 1))
        distance = np.hypot(x - centre, y - height / 2)
        share = np.clip((height / 4 - distance) / 4 + 0.5, 0, 1)[..., None]
        frames.append(background * (1 - share) + np.array([245, 140, 30]) * share)
    return Clip(np.rint(np.stack(frames)).astype(np.uint8), fps)


def encode(clip: Clip, output_format: str, quality: int = 90, **recipe: Any) -> EncodedClip:
    return encode_clip(clip, output_format, quality=quality, recipe={"denoised": "1", **recipe})


def frames_of(file: EncodedClip) -> NDArray[np.uint8]:
    if file.codec == "webp":
        with Image.open(io.BytesIO(file.data)) as image:
            frames = []
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                frames.append(np.asarray(image.convert("RGB")))
        return np.stack(frames)
    with av.open(io.BytesIO(file.data)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_clip_decodes_to_what_was_encoded(output_format: str) -> None:
    clip = moving_disc()
    decoded = frames_of(encode(clip, output_format))
    assert decoded.shape == clip.frames.shape
    # At quality 90 the loss is that of colour at half resolution and 8-bit limited range. A wrong
    # matrix, range or frame order costs 10 dB and more.
    assert psnr(decoded, clip.frames) > 36
    colours = np.abs(decoded.mean(axis=(0, 1, 2)) - clip.frames.mean(axis=(0, 1, 2)))
    assert colours.max() < 1.5


@pytest.mark.parametrize("output_format", FORMATS)
def test_flat_colours_stay_within_three_grey_levels(output_format: str) -> None:
    for colour in ((220, 40, 40), (45, 80, 220), (250, 250, 250), (20, 20, 20)):
        clip = Clip(np.full((3, 32, 32, 3), colour, dtype=np.uint8), 8.0)
        file = encode(clip, output_format)
        off = np.abs(frames_of(file).astype(int) - np.array(colour))
        # Limited range has 219 levels of luma for 256 of a colour.
        assert off.max() <= 3, colour


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_recipe_read_back_is_the_one_written(output_format: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.bin"
    recipe = Recipes("clips", "sha256:00", CPU, "packed").of(claimed_clip("a disc", seed=7), 0)
    path.write_bytes(encode_clip(moving_disc(), output_format, quality=80, recipe=recipe).data)
    assert read_recipe(path) == recipe
    assert recipe["input"]["seed"] == 7
    assert "num_images" not in recipe["input"]
    assert recipe["residency"] == "packed"


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_longest_prompts_survive(output_format: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.bin"
    prompts = {"prompt": "\U0001f534=;#\\\n" * 500, "negative_prompt": "\x01\u200b" * 2000}
    path.write_bytes(encode(moving_disc(1), output_format, input=prompts).data)
    assert read_recipe(path)["input"] == prompts


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("width", [96, 48, 62])
def test_equal_clips_give_equal_bytes(output_format: str, width: int) -> None:
    # Small sizes at which x264 with its default options does not.
    clip = moving_disc(width=width)
    assert len({encode(clip, output_format).data for _ in range(8)}) == 1


@pytest.mark.parametrize(
    ("output_format", "even"), [("mp4", True), ("webm", True), ("webp", False)]
)
def test_odd_sizes_grow_by_one_pixel_where_a_codec_needs_it(output_format: str, even: bool) -> None:
    clip = moving_disc(height=33, width=51)
    file = encode(clip, output_format)
    decoded = frames_of(file)
    assert (file.width, file.height) == ((52, 34) if even else (51, 33))
    assert decoded.shape[1:3] == (file.height, file.width)
    assert psnr(decoded[:, :33, :51], clip.frames) > 34


@pytest.mark.parametrize("output_format", ["mp4", "webm"])
@pytest.mark.parametrize(
    ("fps", "rate"), [(16.0, Fraction(16)), (23.976, Fraction(24000, 1001)), (7.5, Fraction(15, 2))]
)
def test_frames_are_shown_at_the_clips_rate(output_format: str, fps: float, rate: Fraction) -> None:
    file = encode(moving_disc(17, fps=fps), output_format)
    with av.open(io.BytesIO(file.data)) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
        duration = container.duration / av.time_base
    # WebM counts in milliseconds.
    assert times == pytest.approx([float(i / rate) for i in range(17)], abs=1e-3)
    assert duration == pytest.approx(float(17 / rate), abs=1.1e-3)


def test_webp_frames_last_as_long_as_the_clip_says_without_drift() -> None:
    with Image.open(io.BytesIO(encode(moving_disc(49), "webp").data)) as image:
        lengths = []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            lengths.append(image.info["duration"])
        assert image.info["loop"] == 0
    assert set(lengths) == {62, 63}
    assert sum(lengths) == round(49 / 16 * 1000)


@pytest.mark.parametrize("output_format", ["mp4", "webm"])
def test_colours_are_tagged_as_they_are_coded(output_format: str) -> None:
    file = encode(moving_disc(), output_format)
    with av.open(io.BytesIO(file.data)) as container:
        coded = container.streams.video[0].codec_context
        assert coded.pix_fmt == "yuv420p"
        tags = coded.colorspace, coded.color_primaries, coded.color_trc, coded.color_range
        assert tags == (1, 1, 1, 1)


def test_an_mp4_can_be_played_before_it_has_come_whole() -> None:
    data = encode(moving_disc(), "mp4").data
    atoms, position = [], 0
    while position < len(data):
        size, name = struct.unpack(">I4s", data[position : position + 8])
        atoms.append(name)
        position += size
    assert atoms.index(b"moov") < atoms.index(b"mdat")


def test_quality_decides_the_size() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    for output_format in FORMATS:
        sizes = [len(encode(Clip(noise, 8.0), output_format, quality=q).data) for q in (1, 50, 100)]
        assert sizes[0] < sizes[1] / 1.5 < sizes[2] / 2, output_format


def test_a_library_without_h264_falls_back_to_a_free_codec(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = av.Codec

    def without_h264(name: str, mode: str) -> av.Codec:
        if "264" in name:
            raise av.codec.codec.UnknownCodecError(name)
        return known(name, mode)

    monkeypatch.setattr(av, "Codec", without_h264)
    codec_of.cache_clear()
    try:
        file = encode(moving_disc(5), "mp4")
    finally:
        codec_of.cache_clear()
    assert file.codec in {"av1", "vp9", "mpeg4"}
    assert psnr(frames_of(file), moving_disc(5).frames) > 33


@pytest.mark.parametrize(
    ("encoder", "container"),
    [
        *((codec.encoder, "mp4") for codec in video_outputs._CODECS["mp4"]),
        *((codec.encoder, "webm") for codec in video_outputs._CODECS["webm"]),
    ],
)
def test_every_codec_of_the_library_makes_a_sound_and_repeatable_file(
    encoder: str, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = [c for c in video_outputs._CODECS[container] if c.encoder == encoder]
    monkeypatch.setattr(video_outputs, "_CODECS", {container: choices})
    codec_of.cache_clear()
    try:
        try:
            codec_of(container)
        except RuntimeError:
            pytest.skip(f"the library has no {encoder}")
        first, second = (encode(moving_disc(5), container) for _ in range(2))
    finally:
        codec_of.cache_clear()
    assert first.data == second.data
    assert psnr(frames_of(first), moving_disc(5).frames) > 33


@pytest.mark.parametrize("output_format", ["png", "avi", ""])
def test_an_unknown_format_is_refused_by_name(output_format: str) -> None:
    with pytest.raises(ValueError, match=repr(output_format)):
        encode(moving_disc(), output_format)


def test_a_clip_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="no frames"):
        encode(Clip(np.zeros((0, 8, 8, 3), dtype=np.uint8), 8.0), "mp4")


def test_a_clip_of_another_program_carries_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_clip(moving_disc(), "mp4", quality=50, recipe={}).data)
    with pytest.raises(RecipeNotFound, match="carries no recipe"):
        read_recipe(path)


def test_a_broken_clip_is_named_when_its_recipe_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode(moving_disc(), "mp4").data[:40])
    with pytest.raises(RecipeNotFound, match=r"clip\.mp4"):
        read_recipe(path)


def test_a_strip_shows_at_most_nine_frames_from_the_first_to_the_last() -> None:
    assert strip_indices(1) == [0]
    assert strip_indices(5) == [0, 1, 2, 3, 4]
    assert strip_indices(81) == [0, 10, 20, 30, 40, 50, 60, 70, 80]
    small = variants(moving_disc(33, 128, 512))
    assert set(small) == {"thumbnail", "frames"}
    thumbnail = Image.open(io.BytesIO(small["thumbnail"]))
    strip = Image.open(io.BytesIO(small["frames"]))
    assert (thumbnail.format, thumbnail.size) == ("JPEG", (256, 64))
    assert (strip.format, strip.size) == ("JPEG", (9 * 256 + 8 * STRIP_GAP, 64))
    pixels = np.pad(np.asarray(strip), ((0, 0), (0, STRIP_GAP), (0, 0)))
    framed = pixels.reshape(64, 9, 256 + STRIP_GAP, 3)
    shown, gaps = framed[:, :, :256], framed[:, :8, 256:]
    assert gaps.mean() > 200
    # The disc is orange: where red is strong it stands, further right in every frame.
    places = [(shown[:, n, :, 0] > 180).any(axis=0).nonzero()[0].mean() for n in range(9)]
    assert places == sorted(places)
    assert places[8] - places[0] > 128
    middle = (np.asarray(thumbnail)[..., 0] > 180).any(axis=0).nonzero()[0].mean()
    assert middle == pytest.approx(places[4], abs=3)
