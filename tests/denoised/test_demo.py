"""What `make demo` does: the bundled model, no server, one prompt, one picture of it."""

from __future__ import annotations

import numpy
from PIL import Image

from tests.denoised.conftest import denoised

BLUE = (45, 80, 220)
RED = (220, 40, 40)
# Of 255; every other colour of the vocabulary is more than twice as far from these two.
NEAR = 40


def share_of(colour, pixels):
    """How much of the picture is of about this colour."""
    return float((abs(pixels - numpy.array(colour)).max(axis=-1) <= NEAR).mean())


def test_the_demo_leaves_a_picture_in_the_colours_asked_for(tmp_path):
    file = tmp_path / "demo-output" / "picture.png"
    result = denoised(
        *("run", "sana-demo", "a red circle on a blue background", "--output", file, "--seed", 7),
        DENOISED_DATA_DIR=str(tmp_path / "data"),
        DENOISED_PORT="1",
    )
    assert result.returncode == 0, result.stderr
    assert str(file) in result.stdout
    with Image.open(file) as image:
        pixels = numpy.asarray(image.convert("RGB"), dtype=int)
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert share_of(BLUE, corners) == 1
    assert share_of(BLUE, pixels) > 0.5
    assert share_of(RED, pixels) > 0.02
