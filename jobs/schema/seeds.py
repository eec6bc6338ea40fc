"""Seeds of a request: drawn when none is given, with room for every picture of the job."""

from __future__ import annotations

import secrets

from jobs.errors import InvalidInput

MAX_SEED = 2**32 - 1


def resolve_seed(seed: int | None, num_images: int) -> int:
    """`seed` or a fresh one, so that seed + num_images - 1 is a seed too.

    Raises `InvalidInput` naming `input.seed`.
    """
    last = MAX_SEED + 1 - num_images
    if seed is None:
        return secrets.randbelow(last + 1)
    if seed > last:
        raise InvalidInput(
            "input.seed",
            f"input.seed must be a whole number from 0 to {last} for {num_images} images, since "
            f"image i uses seed + i; got {seed}",
        )
    return seed
