"""The map from latents to preview colours of an autoencoder that came without one.

Files as they are shared hold no such map. So the autoencoder encodes a still clip of coloured
squares, and the map is what leads from its latents back to the colours, by least squares.
"""

from __future__ import annotations

import torch

from models.latent_preview import LatentPreview, fit_colours
from models.wan.autoencoder import WanAutoencoder
from models.wan.latent_shape import FRAMES_PER_LATENT

SIDE = 128
"""Pixels: 512 colours for 17 unknowns. The published size takes one core a few seconds."""

CELL = 16
"""Side of a square in pixels. One of 8 has a latent of its own, which sees its neighbours, too."""


@torch.inference_mode()
def fit_preview(autoencoder: WanAutoencoder) -> LatentPreview | None:
    """The map for normalised latents; None where what the encoder says is not finite.

    Fitted to the first latent, which shows one frame, and the second, which shows four.
    """
    device = next(autoencoder.parameters()).device
    generator = torch.Generator().manual_seed(0)
    squares = torch.rand(1, 3, SIDE // CELL, SIDE // CELL, generator=generator) * 2 - 1
    picture = torch.nn.functional.interpolate(squares, scale_factor=CELL, mode="nearest")
    clip = picture[:, :, None].expand(-1, -1, 1 + FRAMES_PER_LATENT, -1, -1)
    latents = autoencoder.normalize(autoencoder.encode(clip.to(device), latents_at_once=1)).cpu()
    if not latents.isfinite().all():
        return None
    weight, bias = fit_colours(latents[0].transpose(0, 1), picture.expand(2, -1, -1, -1))
    return LatentPreview(weight.to(device), bias.to(device))
