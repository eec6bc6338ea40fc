"""The transformer's training set: clips as latents, each with the contexts of two tasks.

`python -m models.demo.wan.clip_pool --autoencoder DIR --out DIR --shards 8` encodes clips with the
finished encoder and leaves shards on disk; several processes may fill one folder. A `Pool` reads
them, also those that appear while the training runs. Captions are not kept: they are worded anew
whenever a sample is drawn.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from models.demo.training import load_state, save_state
from models.demo.wan.captions import HELD_OUT_PAIRS, random_motion
from models.demo.wan.clip_judge import Motion
from models.demo.wan.clips import (
    ClipScene,
    draw_references,
    draw_scenes,
    random_scene,
    random_tint,
)
from models.demo.wan.tasks import TASKS, Task, cover, empty_canvas
from models.wan.autoencoder_loading import load_autoencoder
from models.wan.canvas import Canvas
from models.wan.latent_shape import latent_frames
from models.wan.vace_context import ContextBuilder, Encoder

SHARD = 256
_BATCH = 16
TINTED = 0.25
"""Share of clips in a colour without a name, which part what a shape is from how it is painted."""

COMMON = "common.state"
_REFERENCE_RADII = (14.0, 26.0)


@dataclass(frozen=True, eq=False)
class Samples:
    """Normalised latents [B, 16, T, 8, 8] and contexts [B, 96, T, 8, 8] of a batch, float32.

    With a reference T is one more, and the first latent is the reference's.
    """

    latents: Tensor
    contexts: Tensor
    tasks: list[Task | None]
    motions: list[Motion]
    sizes: list[str]


@torch.no_grad()
def make_shard(encode: Encoder, seed: int) -> dict[str, object]:
    """SHARD clips, drawn and encoded, as plain values for a state file.

    Each clip makes two samples: one of the tasks that cover it, and one with a picture of its shape
    beside it.
    """
    rng = random.Random(f"clip pool {seed}")
    covered = tuple(task for task in TASKS if task != "reference")
    clips: list[Tensor] = []
    canvases: list[Canvas] = []
    tasks: list[Task] = []
    names: list[list[object]] = []
    for index in range(SHARD):
        motion, size = random_motion(rng)
        scene = random_scene(motion, size, rng)
        if rng.random() < TINTED:
            motion = replace(motion, colour=None)
            scene = replace(scene, colour=None, tint=random_tint(_untouched(scene), rng))
        clip = draw_scenes([scene])[0]
        reference = draw_references([scene], [rng.uniform(*_REFERENCE_RADII)])[0]
        clips.append(clip)
        for task in (covered[index % len(covered)], "reference"):
            canvases.append(cover(task, clip, reference, scene, rng))
            tasks.append(task)
            names.append([*astuple(motion), size])
    latents = [latent for latent in _encode_all(encode, clips) for _ in range(2)]
    contexts = _build_all(encode, canvases)
    for index, task in enumerate(tasks):
        if task == "reference":
            latents[index] = torch.cat([contexts[index][:16, :1], latents[index]], dim=1)
    return {
        "latents": [latent.bfloat16() for latent in latents],
        "contexts": [context.bfloat16() for context in contexts],
        "tasks": tasks,
        "names": names,
    }


def _build_all(encode: Encoder, canvases: Sequence[Canvas]) -> list[Tensor]:
    """The context [96, T, 8, 8] of each canvas, whose videos are encoded many at a time."""
    videos: list[Tensor] = []

    def note(video: Tensor) -> Tensor:
        if video.any():
            videos.append(video[0])
        return video.new_zeros(1, 16, latent_frames(video.shape[2]), 8, 8)

    asking = ContextBuilder(note)
    for canvas in canvases:
        asking.build(canvas)
    encoded = iter(_encode_all(encode, videos))
    builder = ContextBuilder(lambda video: next(encoded)[None] if video.any() else encode(video))
    return [builder.build(canvas)[0] for canvas in canvases]


def _encode_all(encode: Encoder, videos: Sequence[Tensor]) -> list[Tensor]:
    """Latents of each video in order. A clip in a batch takes a quarter of what one alone takes."""
    latents: dict[int, Tensor] = {}
    for length in {video.shape[1] for video in videos}:
        rows = [row for row, video in enumerate(videos) if video.shape[1] == length]
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            encoded = encode(torch.stack([videos[row] for row in batch]))
            latents.update(zip(batch, encoded, strict=True))
    return [latents[row] for row in range(len(videos))]


def _untouched(scene: ClipScene) -> list[str]:
    """The background's colour, and those that this shape must not be seen in."""
    kept = [colour for colour, shape in HELD_OUT_PAIRS if shape == scene.shape]
    return [scene.background, *kept]


class Pool:
    """All samples of the shards in a folder, those with a reference apart from the others.

    `statistics` are the mean and deviation, by channel, that the latents were normalised with: the
    checkpoint must have the same.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: set[Path] = set()
        self._latents: dict[bool, list[Tensor]] = {False: [], True: []}
        self._contexts: dict[bool, list[Tensor]] = {False: [], True: []}
        self._about: dict[bool, list[tuple[Task, Motion, str]]] = {False: [], True: []}
        common = load_state(folder / COMMON)
        self.empty_context: Tensor = common["context"].float()
        self.statistics = {name: common[name] for name in ("latents_mean", "latents_std")}
        self.refresh()

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._about.values())

    def refresh(self) -> None:
        """Read the shards that have appeared since."""
        for path in sorted(self._folder.glob("shard-*.state")):
            if path in self._read:
                continue
            self._read.add(path)
            shard = load_state(path)
            for latents, context, task, names in zip(
                shard["latents"], shard["contexts"], shard["tasks"], shard["names"], strict=True
            ):
                kind = task == "reference"
                self._latents[kind].append(latents)
                self._contexts[kind].append(context)
                self._about[kind].append((task, Motion(*names[:4]), names[4]))

    def sample(self, count: int, rng: torch.Generator, *, with_reference: bool) -> Samples:
        """Random samples of one length."""
        latents, contexts = self._latents[with_reference], self._contexts[with_reference]
        rows = torch.randint(len(latents), (count,), generator=rng).tolist()
        about = [self._about[with_reference][row] for row in rows]
        return Samples(
            torch.stack([latents[row] for row in rows]).float(),
            torch.stack([contexts[row] for row in rows]).float(),
            [task for task, _, _ in about],
            [motion for _, motion, _ in about],
            [size for _, _, size in about],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill the pool of the video demo's training.")
    parser.add_argument("--autoencoder", type=Path, required=True, help="its checkpoint folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--shards", type=int, required=True, help=f"of {SHARD} clips each")
    parser.add_argument("--first", type=int, default=0, help="number of the first shard")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    autoencoder = load_autoencoder(arguments.autoencoder, device=torch.device("cpu"))

    def encode(video: Tensor) -> Tensor:
        return autoencoder.normalize(autoencoder.encode(video, latents_at_once=2))

    with torch.no_grad():
        empty = ContextBuilder(encode).build(empty_canvas())[0]
    save_state(
        out / COMMON,
        context=empty.bfloat16(),
        latents_mean=list(autoencoder.config.latents_mean),
        latents_std=list(autoencoder.config.latents_std),
    )
    for number in range(arguments.first, arguments.first + arguments.shards):
        path = out / f"shard-{number:04d}.state"
        if not path.exists():
            save_state(path, **make_shard(encode, number))
            print(f"{path.name} written", flush=True)


if __name__ == "__main__":
    main()
