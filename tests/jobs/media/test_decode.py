"""Accepted files as arrays: upright, flattened on white, at a constant rate."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from jobs.media import pictures, videos
from jobs.media.decode import decode_image, decode_video
from jobs.media.info import MediaError, MediaLimits
from jobs.media.probe import probe
from jobs.media.timing import Timeline
from tests.media_files import HEIGHT, RED, WIDTH, animation, clip, marked, picture, turned_picture

CODED = 12
"""Grey levels by which lossy coding at high quality may move flat colours."""

LIMITS = MediaLimits(
    max_pixels=4096, max_frames=40, max_total_pixels=100_000, max_duration_seconds=10
)
FINE = {"crf": "1"}


def stored(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(data)
    return path


def every(when: Timeline) -> list[int]:
    return list(range(len(when.times)))


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
    frames, _ = decode_video(tmp_path / "a.mp4", every, max_frames=10)
    assert white_corner(frames[0]) == [corner]


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9")])
def test_the_frames_of_a_clip_have_its_colours(tmp_path: Path, name: str, codec: str) -> None:
    clip(tmp_path / name, 5, codec=codec, options={"crf": "4"})
    frames, when = decode_video(tmp_path / name, every, max_frames=10)
    assert frames.shape == (5, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    assert when.fps == pytest.approx(16, rel=0.01)
    for colour, place in ((RED, (3, -4)), ((255, 255, 255), (3, 3))):
        assert np.abs(frames[:, place[0], place[1]].astype(int) - colour).max() <= CODED


def test_full_range_colours_are_not_stretched(tmp_path: Path) -> None:
    clip(tmp_path / "a.mkv", 2, codec="mjpeg", pixel_format="yuvj420p", options={"qmin": "1"})
    frames, _ = decode_video(tmp_path / "a.mkv", every, max_frames=10)
    assert np.abs(frames[0, -4, -4].astype(int) - RED).max() <= CODED


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_the_transparency_of_a_clip_becomes_white(tmp_path: Path, codec: str) -> None:
    clip(
        tmp_path / "a.webm", 3, codec=codec, pixel_format="yuva420p", options={"auto-alt-ref": "0"}
    )
    frames, _ = decode_video(tmp_path / "a.webm", every, max_frames=10)
    assert (frames[:, HEIGHT // 2 + 2 :] >= 255 - CODED).all()
    assert np.abs(frames[0, 3, -4].astype(int) - RED).max() <= CODED


def test_no_more_frames_are_decoded_than_asked_for(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 9)
    assert len(decode_video(tmp_path / "a.mp4", every, max_frames=4)[0]) == 4
    path = stored(tmp_path, animation(count=5))
    assert len(decode_video(path, every, max_frames=4)[0]) == 4


def test_large_frames_are_shrunk_in_proportion(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 2, options=FINE, rotation=90)
    small = WIDTH * HEIGHT // 4
    frames, _ = decode_video(tmp_path / "a.mp4", every, max_frames=9, max_pixels=small)
    assert frames.shape == (2, WIDTH // 2, HEIGHT // 2, 3)
    assert white_corner(frames[0]) == ["lower left"]
    path = stored(tmp_path, animation())
    frames, _ = decode_video(path, every, max_frames=9, max_pixels=small)
    assert frames.shape == (5, HEIGHT // 2, WIDTH // 2, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "I;16"])
def test_a_large_picture_of_any_pixel_format_is_shrunk_to_what_it_shows(
    tmp_path: Path, mode: str
) -> None:
    levels = np.add.outer(np.arange(384), np.arange(512)) / 895 * 255
    image = Image.fromarray(levels.astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray((levels * 257).astype(np.uint16))
    else:
        image = image.convert(mode)
    if image.mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(levels.astype(np.uint8)[::-1]))
    path = tmp_path / "a.png"
    image.save(path)
    whole, small = decode_image(path), decode_image(path, max_pixels=32 * 24)
    assert small.shape == (24, 32, 3)
    blocks = whole.reshape(24, 16, 32, 16, 3).mean((1, 3))
    # Two levels, or the few of a palette, only show the greys between them on the average.
    assert np.abs(small - blocks)[1:-1, 1:-1].max() <= (24 if mode in ("1", "P") else 3)


def test_one_transparent_colour_stays_apart_when_a_picture_is_shrunk(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), (0, 0, 0))
    image.paste((40, 170, 70), (0, 0, 32, 64))
    image.save(tmp_path / "a.png", transparency=(0, 0, 0))
    pixels = decode_image(tmp_path / "a.png", max_pixels=8 * 8)
    assert pixels.shape == (8, 8, 3)
    assert (pixels[:, 6:] == 255).all()
    assert (np.abs(pixels[:, :2].astype(int) - (40, 170, 70)) <= 1).all()


def test_a_large_jpeg_is_decoded_no_larger_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    pixels = pictures.pixels

    def noted(image: Image.Image, *arguments: Any) -> Any:
        decoded.append(image.size)
        return pixels(image, *arguments)

    monkeypatch.setattr(pictures, "pixels", noted)
    path = stored(tmp_path, picture("JPEG", size=(1024, 768)))
    found = decode_image(path, max_pixels=32 * 24)
    assert decoded == [(128, 96)]
    assert found.shape == (24, 32, 3)
    assert white_corner(found) == ["upper left"]


@pytest.mark.parametrize(("orientation", "corner"), [(6, "upper right"), (8, "lower left")])
def test_a_large_turned_picture_is_shrunk_and_set_upright(
    tmp_path: Path, orientation: int, corner: str
) -> None:
    path = stored(tmp_path, turned_picture(orientation))
    pixels = decode_image(path, max_pixels=WIDTH * HEIGHT // 4)
    assert pixels.shape == (WIDTH // 2, HEIGHT // 2, 3)
    assert white_corner(pixels) == [corner]


def test_an_animated_picture_is_a_clip_of_its_frames(tmp_path: Path) -> None:
    frames, when = decode_video(stored(tmp_path, animation("GIF", 5, 100)), every, max_frames=10)
    assert when.fps == pytest.approx(10)
    assert np.abs(frames[:, 3, 3, 0].astype(int) - [0, 5, 10, 15, 20]).max() <= 1


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP"])
def test_frames_of_an_animation_have_their_own_times(tmp_path: Path, format_: str) -> None:
    path = tmp_path / "a"
    pictures = [Image.new("RGB", (8, 8), (50 * n, 0, 0)) for n in range(4)]
    times = [50, 50, 50, 250]
    pictures[0].save(
        path, format_, save_all=True, append_images=pictures[1:], duration=times, lossless=True
    )
    frames, when = decode_video(path, lambda _: [0, 2, 3, 3], max_frames=10)
    assert when.times == pytest.approx((0, 0.05, 0.1, 0.15))
    assert when.end == pytest.approx(0.4)
    assert np.abs(frames[:, 0, 0, 0].astype(int) - [0, 100, 150, 150]).max() <= 2


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"bf": "3"}),
        ("a.mkv", "libx264", {"bf": "3"}),
        ("a.webm", "libvpx-vp9", {}),
        # With hidden frames, which are packets but never shown.
        ("a.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "5"}),
        ("a.mkv", "mjpeg", {}),
    ],
)
def test_the_frames_chosen_are_those_that_come(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = tmp_path / name
    levels = [8 * n for n in range(24)]
    grey_clip(path, levels, codec, options)
    wanted = [0, 3, 3, 10, 22, 23]
    frames, when = decode_video(path, lambda _: wanted, max_frames=40)
    assert when.times == pytest.approx([n / 16 for n in range(24)], abs=0.002)
    found = frames.mean(axis=(1, 2, 3))
    assert found == pytest.approx([levels[index] for index in wanted], abs=3)


def grey_clip(path: Path, levels: list[int], codec: str, options: dict[str, str]) -> None:
    """A clip of flat greys."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=16, options={"crf": "4", "b": "4M", **options})
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for level in levels:
            pixels = np.full((HEIGHT, WIDTH, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))


def test_only_the_chosen_frames_are_turned_into_pixels_and_none_after_them_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip(tmp_path / "a.mkv", 30, options={"g": "1", "bf": "0"})
    made, decoded = [], []
    pixels, frames = videos.Clip.pixels, videos.Clip.frames

    def noted_pixels(self: videos.Clip, picture: av.VideoFrame, **options: Any) -> Any:
        made.append(picture.pts)
        return pixels(self, picture, **options)

    def noted_frames(self: videos.Clip) -> Any:
        for frame in frames(self):
            decoded.append(frame.start)
            yield frame

    monkeypatch.setattr(videos.Clip, "pixels", noted_pixels)
    monkeypatch.setattr(videos.Clip, "frames", noted_frames)
    shown, _ = decode_video(tmp_path / "a.mkv", lambda _: [2, 2, 2, 5], max_frames=40)
    assert (len(shown), len(made)) == (4, 2)
    assert len(decoded) == 7


def test_decoding_takes_the_memory_of_what_is_chosen(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 200, size=(320, 240), options={"preset": "ultrafast"})
    tracemalloc.start()
    try:
        frames, _ = decode_video(tmp_path / "a.mp4", lambda _: range(100, 120), max_frames=200)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A few frames on their way besides the array itself.
    assert peak < frames.nbytes + 8 * frames[0].nbytes


def test_what_is_decoded_is_what_was_told_of_the_file(tmp_path: Path) -> None:
    clip(tmp_path / "a.mkv", 5, times=[0, 1, 2, 10, 11], rotation=None)
    info = probe(tmp_path / "a.mkv", limits=LIMITS)
    frames, when = decode_video(tmp_path / "a.mkv", every, max_frames=40)
    assert frames.shape == (info.num_frames, info.height, info.width, 3)
    assert (when.fps, when.end) == (info.fps, info.duration_seconds)


def test_a_file_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 2)
    with pytest.raises(MediaError, match="is a clip"):
        decode_image(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="is a still picture"):
        decode_video(stored(tmp_path, picture()), every, max_frames=4)
