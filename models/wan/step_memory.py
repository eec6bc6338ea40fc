"""What a denoise step takes beside the weights: sizes of a clip in, bytes out. Plain numbers.

Where weights are placed, room is left for a clip of the default size; on a device that lends memory
it has not got, a host, every request is held against what is free.
"""

from __future__ import annotations

import math

from models.wan.latent_shape import PIXELS_PER_LATENT, latent_frames
from models.wan.transformer_config import WanVaceConfig

TOKENS_TOGETHER = 8192
"""Above so many tokens of one clip a device is busy with a single row, and doing the two halves of
guidance one after the other costs no time but halves the activations."""

# What lives at once for a token, in units of its channels: stream, context, norms, queries, keys,
# values; the wide middle of one layer comes on top. About half of all is activations, the rest is
# for what a request keeps beside them (keys and values of its texts, tokens of its context).
_LIVE_CHANNELS = 16


def clip_tokens(
    config: WanVaceConfig, *, width: int, height: int, num_frames: int, references: int = 0
) -> int:
    """Tokens of a clip of 4n + 1 frames of so many pixels, with that many reference pictures."""
    area = width * height // PIXELS_PER_LATENT**2
    return (latent_frames(num_frames) + references) * area // math.prod(config.patch_size)


def step_bytes(
    config: WanVaceConfig, tokens: int, item_bytes: int, *, clips: int = 1, is_guided: bool = True
) -> int:
    """Bytes of the activations of a step of `clips` clips of `tokens` each.

    Numbers take `item_bytes`. A guided clip takes two rows at once, unless its halves come one
    after the other.
    """
    rows = 2 * clips if is_guided and tokens <= TOKENS_TOGETHER else clips
    return rows * tokens * (_LIVE_CHANNELS * config.dim + 2 * config.ffn_dim) * item_bytes


def check_room(needed: int, free: int) -> None:
    """Raise MemoryError, with the numbers, unless `needed` bytes for a step are `free`."""
    if needed > free:
        raise MemoryError(f"a step takes {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free")
