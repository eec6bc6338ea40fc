"""Clips go to latents and back whatever memory there is, and what is not finite never leaves."""

from __future__ import annotations

import pytest
import torch

from models.wan.clip_coding import decode_clip, encode_clip
from tests.models.runs import relative_error


@pytest.fixture
def autoencoder(wan_pipeline):
    return wan_pipeline.autoencoder


def video() -> torch.Tensor:
    return torch.rand(1, 3, 5, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def without_memory_once(monkeypatch, autoencoder, name: str) -> list[torch.Size]:
    whole = getattr(autoencoder, name)
    calls = []

    def limited(x, **options):
        calls.append(x.shape)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(x, **options)

    monkeypatch.setattr(autoencoder, name, limited)
    return calls


@torch.inference_mode()
def test_latents_have_unit_variance_as_the_transformer_sees_them(autoencoder):
    latents = encode_clip(autoencoder, video())
    assert latents.equal(autoencoder.normalize(autoencoder.encode(video())))
    decoded = autoencoder.decode(autoencoder.denormalize(latents))
    # Pieces of another size: sums in another order.
    assert relative_error(decode_clip(autoencoder, latents), decoded) < 1e-5


@torch.inference_mode()
def test_a_frame_too_large_for_memory_is_encoded_in_tiles(autoencoder, monkeypatch):
    expected = encode_clip(autoencoder, video())
    calls = without_memory_once(monkeypatch, autoencoder, "encode")
    found = encode_clip(autoencoder, video())
    # One tile holds this small a frame, so that the result is the same but for rounding.
    assert len(calls) == 2
    assert relative_error(found, expected) < 1e-5


@torch.inference_mode()
def test_a_frame_too_large_for_memory_is_decoded_in_tiles(autoencoder, monkeypatch):
    latents = encode_clip(autoencoder, video())
    expected = decode_clip(autoencoder, latents)
    calls = without_memory_once(monkeypatch, autoencoder, "decode")
    found = decode_clip(autoencoder, latents)
    assert len(calls) == 2
    assert relative_error(found, expected) < 1e-5


@torch.inference_mode()
def test_frames_that_are_not_finite_are_an_error(autoencoder):
    with pytest.raises(ArithmeticError, match="not finite"):
        decode_clip(autoencoder, torch.full((1, 16, 1, 4, 6), torch.nan))
