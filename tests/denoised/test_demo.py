"""What `make demo` does: the bundled models, no server, one picture and one clip of the prompts."""

from __future__ import annotations

import av
import numpy
from PIL import Image

from tests.denoised.conftest import denoised
from workers.thumbnails import STRIP_GAP

BLUE = (45, 80, 220)
RED = (220, 40, 40)
# Of 255; every other colour of the vocabulary is more than twice as far from these two.
NEAR = 40


def share_of(colour, pixels):
    """How much of the picture is of about this colour."""
    return float((abs(pixels - numpy.array(colour)).max(axis=-1) <= NEAR).mean())


def test_the_demo_leaves_a_picture_and_a_clip_of_what_was_asked_for(tmp_path):
    folder = tmp_path / "demo-output"
    picture, clip, strip = (folder / name for name in ("p.png", "c.mp4", "c-frames.jpg"))
    result = denoised(
        *("demo", "--picture", picture, "--clip", clip),
        DENOISED_DATA_DIR=str(tmp_path / "data"),
        DENOISED_PORT="1",
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[-1] for line in lines[-3:]] == [str(picture), str(clip), str(strip)]

    with Image.open(picture) as image:
        pixels = numpy.asarray(image.convert("RGB"), dtype=int)
    assert_is_red_on_blue(pixels)

    with av.open(str(clip)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 9
    first, last = frames[0].astype(int), frames[-1].astype(int)
    for frame in (first, last):
        assert_is_red_on_blue(frame)
    assert column_of(RED, last) > column_of(RED, first) + frames[0].shape[1] / 8
    with Image.open(strip) as image:
        assert image.size == (9 * frames[0].shape[1] + 8 * STRIP_GAP, frames[0].shape[0])


def assert_is_red_on_blue(pixels):
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert share_of(BLUE, corners) == 1
    assert share_of(BLUE, pixels) > 0.5
    assert share_of(RED, pixels) > 0.02


def column_of(colour, pixels):
    """The mean column of the pixels of about this colour."""
    near = abs(pixels - numpy.array(colour)).max(axis=-1) <= NEAR
    return numpy.where(near)[1].mean()
