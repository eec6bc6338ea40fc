"""What is taken for a picture or a clip, and in which words everything else is refused."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from PIL import Image

from jobs.media.info import MediaError, MediaInfo, MediaLimits
from jobs.media.probe import probe
from tests.media_files import HEIGHT, WIDTH, animation, clip, picture, sound, turned_picture

LIMITS = MediaLimits(
    max_pixels=4096, max_frames=40, max_total_pixels=100_000, max_duration_seconds=10
)


def probed(tmp_path: Path, data: bytes, limits: MediaLimits = LIMITS) -> MediaInfo:
    path = tmp_path / "file"
    path.write_bytes(data)
    return probe(path, limits=limits)


def refusal(tmp_path: Path, data: bytes, limits: MediaLimits = LIMITS) -> str:
    with pytest.raises(MediaError) as refused:
        probed(tmp_path, data, limits)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
def test_pictures_of_every_accepted_format_are_known_for_what_they_are(
    tmp_path: Path, format_: str
) -> None:
    info = probed(tmp_path, picture(format_))
    assert info == MediaInfo(
        kind="image", content_type=f"image/{format_.lower()}", width=WIDTH, height=HEIGHT
    )


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "GIF"])
def test_animated_pictures_are_clips(tmp_path: Path, format_: str) -> None:
    info = probed(tmp_path, animation(format_, count=5, milliseconds=100))
    assert (info.kind, info.num_frames) == ("video", 5)
    assert info.fps == pytest.approx(10)
    assert info.duration_seconds == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "codec", "content_type"),
    [
        ("a.mp4", "libx264", "video/mp4"),
        ("a.mov", "libx264", "video/quicktime"),
        ("a.webm", "libvpx-vp9", "video/webm"),
        ("a.mkv", "libx264", "video/x-matroska"),
    ],
)
def test_clips_of_every_accepted_container_are_known_for_what_they_are(
    tmp_path: Path, name: str, codec: str, content_type: str
) -> None:
    info = probed(tmp_path, clip(tmp_path / name, 9, codec=codec))
    assert (info.kind, info.content_type) == ("video", content_type)
    assert (info.width, info.height, info.num_frames) == (WIDTH, HEIGHT, 9)
    # WebM counts whole milliseconds: at 16 frames a second half a millisecond is 0.8 %.
    assert info.fps == pytest.approx(16, rel=0.01)
    assert info.duration_seconds == pytest.approx(9 / 16, rel=0.01)
    assert (info.has_alpha, info.rotation) == (False, 0)


def test_the_smallest_picture_is_a_picture(tmp_path: Path) -> None:
    info = probed(tmp_path, picture(size=(1, 1)))
    assert (info.width, info.height) == (1, 1)


@pytest.mark.parametrize(("orientation", "degrees"), [(1, 0), (3, 180), (6, 270), (8, 90)])
def test_a_turned_picture_has_the_size_it_is_shown_with(
    tmp_path: Path, orientation: int, degrees: int
) -> None:
    info = probed(tmp_path, turned_picture(orientation))
    assert info.rotation == degrees
    expected = (HEIGHT, WIDTH) if degrees % 180 else (WIDTH, HEIGHT)
    assert (info.width, info.height) == expected


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_clip_has_the_size_it_is_shown_with(tmp_path: Path, degrees: int) -> None:
    info = probed(tmp_path, clip(tmp_path / "a.mp4", 3, rotation=degrees))
    assert info.rotation == degrees
    expected = (HEIGHT, WIDTH) if degrees % 180 else (WIDTH, HEIGHT)
    assert (info.width, info.height) == expected


def test_alpha_is_seen_in_pictures_and_clips(tmp_path: Path) -> None:
    assert probed(tmp_path, picture(mode="RGBA")).has_alpha
    data = clip(tmp_path / "a.webm", 3, codec="libvpx-vp9", pixel_format="yuva420p")
    assert probed(tmp_path, data).has_alpha


def test_a_clip_of_variable_rate_has_its_average_rate(tmp_path: Path) -> None:
    data = clip(tmp_path / "a.mkv", 5, times=[0, 1, 2, 10, 11])
    info = probed(tmp_path, data)
    assert info.num_frames == 5
    # Twelve ticks of 1/16 s for five frames.
    assert info.fps == pytest.approx(5 / (12 / 16), rel=0.02)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, b"") == "is empty"


@pytest.mark.parametrize(
    "data",
    [
        b"Dear diary,\n" * 50,
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"\x00\x00\x00\x20ftypheic" + bytes(40),
        b"BM" + bytes(80),
    ],
)
def test_what_is_of_no_accepted_format_is_refused_with_the_accepted_ones(
    tmp_path: Path, data: bytes
) -> None:
    message = refusal(tmp_path, data)
    assert "format that is not accepted" in message
    assert "PNG" in message
    assert "MP4" in message


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_picture_that_is_cut_off_is_refused(tmp_path: Path, format_: str) -> None:
    data = picture(format_, size=(60, 60))
    message = refusal(tmp_path, data[: len(data) * 7 // 8])
    assert "cut off" in message or "not a readable" in message


def test_an_animation_whose_second_frame_is_cut_off_is_refused(tmp_path: Path) -> None:
    data = animation("GIF", 5)
    place = data.index(b"\x21\xf9", data.index(b"\x21\xf9") + 1)
    for length in range(place, place + 30):
        try:
            info = probed(tmp_path, data[:length])
        except MediaError:
            continue
        # Nothing of the frame is there: what is left is a sound picture.
        assert info.kind == "image"


def test_a_picture_with_only_a_signature_is_refused(tmp_path: Path) -> None:
    assert "not a readable png" in refusal(tmp_path, picture()[:12])


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("a.mp4", "libx264", {"movflags": "faststart"}),
        ("a.webm", "libvpx-vp9", {}),
        ("a.mkv", "libx264", {}),
    ],
)
def test_a_clip_that_is_cut_off_is_refused(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    data = clip(tmp_path / name, 32, codec=codec, container_options=options)
    message = refusal(tmp_path, data[: len(data) * 3 // 5])
    # Of an MP4 whose index is at the end and gone, nothing is left to see.
    assert "cut off" in message or message == "has no video in it"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_clip_whose_middle_is_noise_is_refused(tmp_path: Path, name: str) -> None:
    data = bytearray(clip(tmp_path / name, 20, codec="mjpeg", pixel_format="yuvj420p"))
    for place in range(len(data) // 4, len(data) * 3 // 4):
        data[place] ^= 0x5A
    assert refusal(tmp_path, bytes(data))


def test_a_file_without_pictures_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, sound(tmp_path / "a.mp4")) == "has no video in it"


def test_a_clip_without_frames_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, clip(tmp_path / "a.mp4", 0)) == "has no video in it"
    assert refusal(tmp_path, clip(tmp_path / "a.webm", 0, codec="libvpx"))


def test_a_codec_that_is_not_accepted_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, clip(tmp_path / "a.mkv", 3, codec="mpeg2video"))
    assert "is coded in mpeg2video" in message
    assert "h264" in message


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    words = "100 x 60 pixels; at most 4096"
    assert words in refusal(tmp_path, picture(size=(100, 60)))
    assert words in refusal(tmp_path, clip(tmp_path / "a.mp4", 1, size=(100, 60)))


def test_more_frames_than_allowed_are_refused(tmp_path: Path) -> None:
    words = "more than the 40 frames"
    # MP4 says how many frames it has, WebM does not.
    assert words in refusal(tmp_path, clip(tmp_path / "a.mp4", 41, fps=50))
    assert words in refusal(tmp_path, clip(tmp_path / "a.webm", 41, codec="libvpx", fps=50))
    assert words in refusal(tmp_path, animation("GIF", 41))


def test_a_clip_that_is_too_long_is_refused(tmp_path: Path) -> None:
    data = clip(tmp_path / "a.mkv", 3, times=[0, 1, 16 * 60])
    assert "longer than the 10 seconds" in refusal(tmp_path, data)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_a_last_frame_that_is_held_is_no_frame_that_is_missing(tmp_path: Path, name: str) -> None:
    codec = "libvpx-vp9" if name == "a.webm" else "libx264"
    data = held(tmp_path / name, codec, seconds=5)
    info = probed(tmp_path, data)
    assert info.num_frames == 5
    assert info.duration_seconds == pytest.approx(4 / 16 + 5, abs=0.01)


def test_of_a_held_last_frame_too_the_file_must_be_whole(tmp_path: Path) -> None:
    data = held(tmp_path / "a.webm", "libvpx-vp9", seconds=5)
    assert f"cut off: it has {len(data) - 1} of {len(data)} bytes" in refusal(tmp_path, data[:-1])


def test_a_last_frame_that_is_held_for_too_long_is_refused(tmp_path: Path) -> None:
    data = held(tmp_path / "a.webm", "libvpx-vp9", seconds=11)
    assert "longer than the 10 seconds" in refusal(tmp_path, data)


@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
def test_a_streamed_clip_that_does_not_say_its_length_is_taken(tmp_path: Path, name: str) -> None:
    codec = "libvpx" if name == "a.webm" else "libx264"
    data = clip(tmp_path / name, 9, codec=codec, container_options={"live": "1"})
    assert probed(tmp_path, data).num_frames == 9


def held(path: Path, codec: str, *, seconds: int) -> bytes:
    """A clip of five frames at 16 a second of which the last one is shown for `seconds`."""
    options = {"bf": "0"} if codec == "libx264" else {}
    clip(path, 5, codec=codec, options=options)
    source = path.rename(path.with_stem("source"))
    with av.open(source) as given, av.open(path, "w") as made:
        stream = given.streams.video[0]
        packets = [packet for packet in given.demux(stream) if packet.dts is not None]
        assert packets[-1].time_base is not None
        packets[-1].duration = int(seconds / packets[-1].time_base)
        copied = made.add_stream_from_template(stream)
        for packet in packets:
            packet.stream = copied
            made.mux(packet)
    return path.read_bytes()


def test_more_pixels_in_all_than_allowed_are_refused(tmp_path: Path) -> None:
    words = "40 of 60 x 50 are more than the 100000 that are accepted"
    assert words in refusal(tmp_path, clip(tmp_path / "a.mp4", 40, size=(60, 50)))
    frames = [Image.new("RGB", (60, 50), (n, 0, 0)) for n in range(40)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert words in refusal(tmp_path, (tmp_path / "a.gif").read_bytes())
    # WebM does not say beforehand how many frames it has: the first too many is refused.
    data = clip(tmp_path / "a.webm", 40, codec="libvpx", size=(60, 50))
    assert words.replace("40", "34") in refusal(tmp_path, data)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "GIF", "PNG", "WEBP"])
def test_no_mutation_of_a_clip_is_more_than_refused(tmp_path: Path, name: str) -> None:
    if "." in name:
        codec = "libx264" if name == "a.mp4" else "libvpx"
        data = clip(tmp_path / name, 6, codec=codec)
    else:
        data = animation(name)
    outcomes = set()
    for place in range(0, len(data), max(1, len(data) // 40)):
        mutated = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        try:
            outcomes.add(probed(tmp_path, mutated).kind)
        except (MediaError, MemoryError):
            # Some ask for gigabytes, and not every machine grants them: the helper refuses both.
            outcomes.add("refused")
    assert outcomes <= {"video", "image", "refused"}
    assert "refused" in outcomes
