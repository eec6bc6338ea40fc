"""How the clips of VACE tasks are judged: what they show, what they keep, where things are.

Kept parts pass through the autoencoder, whose own error is measured in the test on the same frames;
what is to be kept may be off by that much and by `SLACK`, for the codec and the denoising.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from models.demo.colours import COLOURS
from models.demo.judge import Reading
from models.demo.wan.clip_judge import Motion, judge_clip, read_clip
from models.demo.wan.clips import SIDE, ClipScene
from models.wan.autoencoder import WanAutoencoder
from tests.denoised.vace_scenes import to_clip, to_frames

# Grey levels of 255, on the average over a kept region: the model paints kept parts itself, and
# the bundled one, a few million parameters, does so roughly. Another clip is off by 40 and more.
SLACK = 8.0
# A latent is 8 x 8 pixels: nearer than that to something made, kept pixels share theirs with it.
BORDER = 8
# How far a thing may be from where it is guided to, in pixels; it moves by about 3 in a frame.
NEAR = 4.0


def assert_shows(frames: np.ndarray, asked: Motion) -> None:
    verdict = judge_clip(to_clip(frames), asked)
    assert verdict.passed, verdict.reasons


def assert_kept(
    frames: np.ndarray, source: np.ndarray, made: np.ndarray, autoencoder: WanAutoencoder
) -> None:
    """Every pixel of `source` well away from `made`, bool [T, H, W], is as it was.

    As it was means within the autoencoder's own error on the source and SLACK.
    """
    wide = torch.from_numpy(made).float()[:, None]
    near = F.max_pool2d(wide, 2 * BORDER + 1, stride=1, padding=BORDER)[:, 0].bool().numpy()
    assert not near.all()
    with torch.inference_mode():
        coded = autoencoder.decode(autoencoder.encode(to_clip(source)[None]))[0]
    floor = difference(to_frames(coded), source)[~near].mean()
    assert difference(frames, source)[~near].mean() <= floor + SLACK


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean absolute difference of the channels, in grey levels, for each pixel."""
    return abs(one.astype(float) - other.astype(float)).mean(-1)


def colour_of(scene: ClipScene) -> np.ndarray:
    """The colour of the scene's thing, float [3] in grey levels."""
    assert scene.colour is not None
    return np.array(COLOURS[scene.colour], dtype=float)


def thing_colour(frames: np.ndarray, background: str) -> np.ndarray:
    """The mean colour, float [3] in grey levels, of all that does not look like the background."""
    pixels = frames.astype(float)
    is_thing = abs(pixels - np.array(COLOURS[background])).max(-1) > 60
    assert is_thing.mean() > 0.02
    return pixels[is_thing].mean(0)


def readings(frames: np.ndarray) -> tuple[Reading, ...]:
    return read_clip(to_clip(frames))[1]


def distances(frames: np.ndarray, source: np.ndarray) -> list[float]:
    """How far the thing is from that of the source, in pixels, where both can be read."""
    pairs = zip(readings(frames), readings(source), strict=True)
    return [
        SIDE * float(np.hypot(a.center[0] - b.center[0], a.center[1] - b.center[1]))
        for a, b in pairs
        if a.center is not None and b.center is not None
    ]
