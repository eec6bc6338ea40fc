"""The palette of the demo models: names the captions use and the sRGB values they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (45, 80, 220),
    "yellow": (245, 215, 50),
    "orange": (245, 140, 30),
    "purple": (140, 60, 180),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
    "pink": (245, 150, 190),
    "cyan": (60, 205, 220),
}
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)


def palette() -> Tensor:
    """All colours [10, 3], float32 in the models' range [-1, 1], in the order of COLOUR_NAMES."""
    return torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 127.5 - 1.0
