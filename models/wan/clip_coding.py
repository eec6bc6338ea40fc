"""Clips to the latents that the transformer sees, and back, with the memory that there is.

A clip goes through the autoencoder in as large pieces as pay. Where the device has no room even for
a piece of whole frames, the work is done again in tiles, which is slower and very close to equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.pipeline import KeepGoing, to_the_end
from models.wan.autoencoder import WanAutoencoder
from models.wan.autoencoder_tiling import Tiles, decode_tiled, encode_tiled
from models.wan.latent_shape import FRAMES_PER_LATENT, PIXELS_PER_LATENT

# Pixels of frames that the autoencoder works on at once.
_PIXELS_AT_ONCE = 4 * 832 * 480


def encode_clip(
    autoencoder: WanAutoencoder, video: Tensor, keep_going: KeepGoing = to_the_end
) -> Tensor:
    """Normalised latents [1, 16, n + 1, H / 8, W / 8] of a clip [1, 3, 4n + 1, H, W] in [-1, 1]."""
    at_once = _latents_at_once(video.shape[-2] * video.shape[-1])
    latents = _in_tiles_if_need_be(
        lambda: autoencoder.encode(video, latents_at_once=at_once, keep_going=keep_going),
        lambda: encode_tiled(autoencoder, video, Tiles(), keep_going),
    )
    return autoencoder.normalize(latents)


def decode_clip(
    autoencoder: WanAutoencoder, latents: Tensor, keep_going: KeepGoing = to_the_end
) -> Tensor:
    """The clip [1, 3, 4n + 1, 8 h, 8 w], about [-1, 1], of normalised latents [1, 16, n + 1, h, w].

    Raises ArithmeticError when it is not finite.
    """
    latents = autoencoder.denormalize(latents)
    at_once = _latents_at_once(latents.shape[-2] * latents.shape[-1] * PIXELS_PER_LATENT**2)
    video = _in_tiles_if_need_be(
        lambda: autoencoder.decode(latents, latents_at_once=at_once, keep_going=keep_going),
        lambda: decode_tiled(autoencoder, latents, Tiles(), keep_going),
    )
    if not video.isfinite().all():
        raise ArithmeticError("the frames hold values that are not finite numbers")
    return video


def _in_tiles_if_need_be(whole: Callable[[], Tensor], tiled: Callable[[], Tensor]) -> Tensor:
    try:
        return whole()
    except torch.OutOfMemoryError:
        pass
    # Outside of the handler, whose traceback keeps what was allocated.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return tiled()


def _latents_at_once(frame_pixels: int) -> int:
    """How many latents of frames this large the autoencoder takes together."""
    return max(1, _PIXELS_AT_ONCE // (FRAMES_PER_LATENT * frame_pixels))
