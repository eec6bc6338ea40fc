"""Scenes that the tests of VACE tasks draw themselves, and what a client sends of them."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from denoised.client import Client
from models.demo.wan.clip_judge import DIRECTIONS, Motion
from models.demo.wan.clips import FRAMES, SIDE, ClipScene, draw_references, draw_scenes

FPS = 8.0

RED_CIRCLE = ClipScene("circle", "red", "blue", (20.0, 32.0), (24.0, 0.0), 14.0)
GREEN_SQUARE = ClipScene("square", "green", "white", (32.0, 44.0), (0.0, -24.0), 14.0)


def motion_of(scene: ClipScene) -> Motion:
    signs = tuple(int(np.sign(way)) for way in scene.way)
    direction = next(name for name, found in DIRECTIONS.items() if found == signs)
    return Motion(scene.shape, scene.colour, scene.background, direction)


def prompt_of(scene: ClipScene, thing: str | None = None, *, ground: bool = True) -> str:
    """The caption of a scene; `thing` takes the place of what the shape looks like, and without
    `ground` the background is left for the model to see."""
    thing = thing or f"{scene.colour} {scene.shape}"
    article = "an" if thing[0] in "aeiou" else "a"
    moving = f"{article} {thing} moving {motion_of(scene).direction}"
    return f"{moving} on a {scene.background} background" if ground else moving


def drawn(scene: ClipScene) -> np.ndarray:
    """The scene's true frames, uint8 [FRAMES, SIDE, SIDE, 3]."""
    return to_frames(draw_scenes([scene])[0])


def to_frames(clip: torch.Tensor) -> np.ndarray:
    return clip.add(1).mul(127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()


def to_clip(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1


def reference_of(scene: ClipScene) -> str:
    [reference] = to_frames(draw_references([scene], [20.0])[0][:, None])
    return data_url(reference)


def everywhere(value: bool = False) -> np.ndarray:
    return np.full((FRAMES, SIDE, SIDE), value)


def way_box(scene: ClipScene) -> np.ndarray:
    """True in a box around all of the thing's way, bool [SIDE, SIDE]."""
    box = np.zeros((SIDE, SIDE), dtype=bool)
    sides = []
    for axis in (1, 0):
        ends = (scene.start[axis], scene.start[axis] + scene.way[axis])
        low, high = min(ends) - scene.radius - 4, max(ends) + scene.radius + 4
        sides.append(slice(max(0, int(low)), min(SIDE, int(high) + 1)))
    box[tuple(sides)] = True
    return box


def moving_box(scene: ClipScene) -> np.ndarray:
    """True in a box around the thing wherever it is, bool [FRAMES, SIDE, SIDE]."""
    box = everywhere()
    for index, frame in enumerate(box):
        middle = [
            at + way * index / (FRAMES - 1) for at, way in zip(scene.start, scene.way, strict=True)
        ]
        low, high = ([round(at + sign * (scene.radius + 6)) for at in middle] for sign in (-1, 1))
        frame[max(0, low[1]) : high[1], max(0, low[0]) : high[0]] = True
    return box


def mask_picture(made: np.ndarray) -> np.ndarray:
    """White where `made`, bool [..., H, W], says so."""
    return np.repeat(made[..., None] * np.uint8(255), 3, axis=-1)


def another(scene: ClipScene) -> ClipScene:
    """A thing of other looks on the same way over the same background."""
    return replace(scene, shape="triangle", colour="yellow")


def upload(client: Client, folder: Path, frames: np.ndarray) -> str:
    """The id of an uploaded clip, an animated WebP without loss."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    path = folder / "clip.webp"
    duration = round(1000 / FPS)
    first.save(path, save_all=True, append_images=rest, duration=duration, lossless=True)
    stored = client.upload(path)
    assert (stored.kind, stored.num_frames) == ("video", len(frames))
    return stored.id


def data_url(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
