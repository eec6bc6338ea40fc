"""Leaving long work of a clip half-way: often asked, and nothing is broken afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.errors import Cancelled
from models.wan import pipeline as pipeline_module
from models.wan.autoencoder_tiling import Tiles, decode_tiled, encode_tiled
from tests.models.wan.tiny_checkpoint import clip, request, run


class Asked:
    """Counts how often it is asked; leaves the work at the `leave_at`-th time."""

    def __init__(self, leave_at: int | None = None) -> None:
        self.times = 0
        self._leave_at = leave_at

    def __call__(self) -> None:
        self.times += 1
        if self.times == self._leave_at:
            raise Cancelled


def test_decoding_asks_after_every_chunk_and_may_be_left(wan_pipeline):
    asked = request(num_frames=9)
    generation = wan_pipeline.prepare(asked)
    while not generation.is_done:
        wan_pipeline.step([generation])
    expected = wan_pipeline.decode(generation)
    counting = Asked()
    again = wan_pipeline.decode(generation, counting)
    # The first latent alone, the other two in one chunk of small frames.
    assert counting.times == 2
    for place in range(1, counting.times + 1):
        with pytest.raises(Cancelled):
            wan_pipeline.decode(generation, Asked(place))
    assert np.array_equal(again.frames, expected.frames)
    assert np.array_equal(wan_pipeline.decode(generation).frames, expected.frames)


def test_encoding_asks_between_chunks_inputs_and_prompts_and_may_be_left(wan_pipeline):
    asked = request(control_video=clip(), reference_images=(clip(1),))
    expected = run(wan_pipeline, asked)
    counting = Asked()
    wan_pipeline.prepare(asked, counting)
    # Two halves of the canvas in two chunks each, unless grey and known; a reference; prompts.
    assert counting.times >= 4
    for place in range(1, counting.times + 1):
        with pytest.raises(Cancelled):
            wan_pipeline.prepare(asked, Asked(place))
    assert torch.equal(run(wan_pipeline, asked).latents, expected.latents)


def test_halves_of_guidance_apart_leave_a_generation_as_it_was(wan_pipeline, monkeypatch):
    monkeypatch.setattr(pipeline_module, "TOKENS_TOGETHER", 0)
    generation, other = (wan_pipeline.prepare(request()) for _ in range(2))
    before = generation.state_dict()
    with pytest.raises(Cancelled):
        wan_pipeline.step([generation], Asked(1))
    after = generation.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    wan_pipeline.step([generation])
    wan_pipeline.step([other])
    assert torch.equal(generation.latents, other.latents)


@torch.inference_mode()
def test_every_tile_asks(wan_pipeline):
    autoencoder, tiles = wan_pipeline.autoencoder, Tiles(side=32, stride=16)
    video = torch.rand(1, 3, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    counting = Asked()
    latents = encode_tiled(autoencoder, video, tiles, counting)
    assert counting.times == 2 * 3
    counting = Asked()
    decode_tiled(autoencoder, latents, tiles, counting)
    assert counting.times == 2 * 3
