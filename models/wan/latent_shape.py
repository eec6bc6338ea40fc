"""How clips and latents of Wan's autoencoder relate in size. Plain numbers, no tensor library."""

from __future__ import annotations

PIXELS_PER_LATENT = 8
"""Side of the square of pixels that one latent stands for."""

FRAMES_PER_LATENT = 4
"""Frames that one latent after the first stands for; the first frame has one to itself."""

LATENT_CHANNELS = 16


def latent_frames(num_frames: int) -> int:
    """Latents of a clip of 4n + 1 frames."""
    return (num_frames + FRAMES_PER_LATENT - 1) // FRAMES_PER_LATENT
