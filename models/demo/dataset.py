"""The transformer's training set: captions, the scenes they ask for, both encoded and kept.

A `Pool` holds samples of one picture size as raw latents and text states, encoded once by the
frozen autoencoder and text encoder. It starts small and grows while the training runs, so that the
first step does not wait for the last sample.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from models.demo.colours import COLOUR_NAMES, palette
from models.demo.grammar import Scene, random_scene
from models.demo.shapes import SHAPES, draw
from models.demo.train_text_encoder import HIDDEN_SIZE, CaptionEncoder, random_prompts
from models.demo.training import mixed_precision
from models.sana.autoencoder_dc import AutoencoderDC

_CHUNK = 32
_MAX_TOKENS = 48
# Share of the captions that are encoded behind Sana's instruction, as at inference.
_INSTRUCTED = 0.7


def draw_scenes(scenes: list[Scene], height: int, width: int) -> Tensor:
    """Pictures [B, 3, height, width] in [-1, 1] of a list of scenes."""
    colours = palette()
    centers = torch.tensor([(s.center[0] * width, s.center[1] * height) for s in scenes])
    return draw(
        torch.tensor([SHAPES.index(s.shape) for s in scenes]),
        colours[[COLOUR_NAMES.index(s.colour) for s in scenes]],
        colours[[COLOUR_NAMES.index(s.background) for s in scenes]],
        centers,
        torch.tensor([s.radius * min(height, width) for s in scenes]),
        height,
        width,
    )


class Pool:
    """A growing set of samples of one picture size, in bfloat16."""

    def __init__(self, height: int, width: int, capacity: int, seed: int) -> None:
        self.height, self.width, self.capacity = height, width, capacity
        self.count = 0
        self._rng = random.Random(f"{seed}-{height}x{width}")
        self._latents = torch.empty(capacity, 32, height // 32, width // 32, dtype=torch.bfloat16)
        self._states = torch.zeros(capacity, _MAX_TOKENS, HIDDEN_SIZE, dtype=torch.bfloat16)
        self._lengths = torch.zeros(capacity, dtype=torch.long)

    @property
    def tokens(self) -> int:
        """Latent positions of one sample."""
        return (self.height // 32) * (self.width // 32)

    @torch.no_grad()
    def grow(self, autoencoder: AutoencoderDC, text: CaptionEncoder) -> None:
        """Word, draw and encode a few more samples, up to the capacity."""
        prompts = random_prompts(self._rng, min(_CHUNK, self.capacity - self.count))
        if not prompts:
            return
        rows = slice(self.count, self.count + len(prompts))
        scenes = [random_scene(prompt.asked, self._rng) for prompt in prompts]
        with mixed_precision():
            latents = autoencoder.encode(draw_scenes(scenes, self.height, self.width))
        instructed = self._rng.random() < _INSTRUCTED
        states, mask = text([prompt.text for prompt in prompts], instructed=instructed)
        self._latents[rows] = latents.bfloat16()
        self._states[rows, : states.shape[1]] = states.bfloat16()
        self._lengths[rows] = mask.sum(1)
        self.count += len(prompts)

    def root_mean_square(self) -> float:
        """Of the raw latents; its inverse is the scaling factor."""
        return self._latents[: self.count].float().square().mean().sqrt().item()

    def sample(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Raw latents [B, 32, h, w], text states [B, T, C] in float32 and their lengths [B]."""
        rows = torch.randint(self.count, (count,), generator=rng)
        lengths = self._lengths[rows]
        states = self._states[rows, : int(lengths.max())].float()
        return self._latents[rows].float(), states, lengths
