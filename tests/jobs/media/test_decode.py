"""Accepted files as arrays: upright, flattened on white, at a constant rate."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.media.decode import decode_image, decode_video
from jobs.media.info import MediaError, MediaLimits
from jobs.media.probe import probe
from tests.media_files import HEIGHT, RED, WIDTH, animation, clip, marked, picture, turned_picture

CODED = 12
"""Grey levels by which lossy coding at high quality may move flat colours."""

LIMITS = MediaLimits(max_pixels=4096, max_frames=40, max_duration_seconds=10)
FINE = {"crf": "1"}


def stored(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(data)
    return path


def corners(pixels: np.ndarray) -> dict[str, list[int]]:
    """Colours a few pixels off the corners."""
    return {
        "upper left": pixels[3, 3].tolist(),
        "upper right": pixels[3, -4].tolist(),
        "lower left": pixels[-4, 3].tolist(),
        "lower right": pixels[-4, -4].tolist(),
    }


def white_corner(pixels: np.ndarray) -> list[str]:
    return [name for name, colour in corners(pixels).items() if min(colour) > 255 - 2 * CODED]


def test_a_png_comes_back_as_it_was(tmp_path: Path) -> None:
    pixels = decode_image(stored(tmp_path, picture()))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, marked())


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "I;16", "LA"])
def test_every_pixel_format_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = grey.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    expected = np.asarray(image.convert("RGB")) if mode != "I;16" else np.asarray(grey)[..., None]
    pixels = decode_image(stored(tmp_path, buffer.getvalue()))
    assert pixels.shape == (8, 8, 3)
    assert np.array_equal(pixels, np.broadcast_to(expected, (8, 8, 3)))


def test_transparency_becomes_white(tmp_path: Path) -> None:
    pixels = decode_image(stored(tmp_path, picture(mode="RGBA")))
    assert tuple(pixels[3, -4]) == RED
    assert (pixels[HEIGHT // 2 :] == 255).all()


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, "upper left"), (3, "lower right"), (6, "upper right"), (8, "lower left")],
)
def test_a_turned_picture_is_set_upright(tmp_path: Path, orientation: int, corner: str) -> None:
    assert white_corner(decode_image(stored(tmp_path, turned_picture(orientation)))) == [corner]


@pytest.mark.parametrize(
    ("degrees", "corner"), [(90, "lower left"), (180, "lower right"), (270, "upper right")]
)
def test_a_turned_clip_is_set_upright(tmp_path: Path, degrees: int, corner: str) -> None:
    clip(tmp_path / "a.mp4", 2, rotation=degrees, options=FINE)
    frames, _ = decode_video(tmp_path / "a.mp4", max_frames=10)
    assert white_corner(frames[0]) == [corner]


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9")])
def test_the_frames_of_a_clip_have_its_colours(tmp_path: Path, name: str, codec: str) -> None:
    clip(tmp_path / name, 5, codec=codec, options={"crf": "4"})
    frames, fps = decode_video(tmp_path / name, max_frames=10)
    assert frames.shape == (5, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    assert fps == pytest.approx(16, rel=0.01)
    for colour, place in ((RED, (3, -4)), ((255, 255, 255), (3, 3))):
        assert np.abs(frames[:, place[0], place[1]].astype(int) - colour).max() <= CODED


def test_full_range_colours_are_not_stretched(tmp_path: Path) -> None:
    clip(tmp_path / "a.mkv", 2, codec="mjpeg", pixel_format="yuvj420p", options={"qmin": "1"})
    frames, _ = decode_video(tmp_path / "a.mkv", max_frames=10)
    assert np.abs(frames[0, -4, -4].astype(int) - RED).max() <= CODED


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_the_transparency_of_a_clip_becomes_white(tmp_path: Path, codec: str) -> None:
    clip(
        tmp_path / "a.webm", 3, codec=codec, pixel_format="yuva420p", options={"auto-alt-ref": "0"}
    )
    frames, _ = decode_video(tmp_path / "a.webm", max_frames=10)
    assert (frames[:, HEIGHT // 2 + 2 :] >= 255 - CODED).all()
    assert np.abs(frames[0, 3, -4].astype(int) - RED).max() <= CODED


def test_no_more_frames_are_decoded_than_asked_for(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 9)
    assert len(decode_video(tmp_path / "a.mp4", max_frames=4)[0]) == 4
    path = stored(tmp_path, animation(count=5))
    assert len(decode_video(path, max_frames=4)[0]) == 4


def test_large_frames_are_shrunk_in_proportion(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 2, options=FINE, rotation=90)
    frames, _ = decode_video(tmp_path / "a.mp4", max_frames=9, max_pixels=WIDTH * HEIGHT // 4)
    assert frames.shape == (2, WIDTH // 2, HEIGHT // 2, 3)
    assert white_corner(frames[0]) == ["lower left"]
    path = stored(tmp_path, animation())
    frames, _ = decode_video(path, max_frames=9, max_pixels=WIDTH * HEIGHT // 4)
    assert frames.shape == (5, HEIGHT // 2, WIDTH // 2, 3)


def test_an_animated_picture_is_a_clip_of_its_frames(tmp_path: Path) -> None:
    frames, fps = decode_video(stored(tmp_path, animation("GIF", 5, 100)), max_frames=10)
    assert fps == pytest.approx(10)
    assert np.abs(frames[:, 3, 3, 0].astype(int) - [0, 5, 10, 15, 20]).max() <= 1


def test_a_variable_rate_becomes_a_constant_one(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    pictures = [Image.new("RGB", (8, 8), (50 * n, 0, 0)) for n in range(4)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[50, 50, 50, 250])
    frames, fps = decode_video(path, max_frames=10)
    # 0.4 s in four ticks of 0.1 s: what starts between two ticks is left out or waits.
    assert fps == pytest.approx(10)
    assert np.abs(frames[:, 0, 0, 0].astype(int) - [0, 100, 150, 150]).max() <= 2


def test_what_is_decoded_is_what_was_told_of_the_file(tmp_path: Path) -> None:
    clip(tmp_path / "a.mkv", 5, times=[0, 1, 2, 10, 11], rotation=None)
    info = probe(tmp_path / "a.mkv", limits=LIMITS)
    frames, fps = decode_video(tmp_path / "a.mkv", max_frames=40)
    assert frames.shape == (info.num_frames, info.height, info.width, 3)
    assert fps == info.fps


def test_a_file_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 2)
    with pytest.raises(MediaError, match="is a clip"):
        decode_image(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="is a still picture"):
        decode_video(stored(tmp_path, picture()), max_frames=4)
