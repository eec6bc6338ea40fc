"""Rough pictures straight from latents: a linear map from latent channels to colours.

It costs microseconds where a decode costs seconds. A checkpoint may bring such a map as
`preview.safetensors`, fitted by least squares to its own autoencoder; where the encoder is at hand
it can be fitted at load. Otherwise there is no honest way to guess which channel means which
colour, and no preview is offered.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from models.errors import CheckpointError
from models.pictures import to_images
from models.weights.safetensors_folder import read_tensors

PREVIEW_FILE = "preview.safetensors"
PIXELS_PER_LATENT = 8
"""Side of the square that one latent takes in a preview."""


def fit_colours(latents: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares map from latents [N, C, h, w] to mean colours: weight [3, C] and bias [3].

    `pictures` [N, 3, n h, n w] in [-1, 1] are what the latents decode to.
    """
    colours = torch.nn.functional.avg_pool2d(pictures, pictures.shape[-1] // latents.shape[-1])
    inputs = latents.movedim(1, -1).flatten(0, 2).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], dim=1)
    targets = colours.movedim(1, -1).flatten(0, 2).double()
    solution = torch.linalg.lstsq(inputs, targets).solution.T.float()
    return solution[:, :-1].contiguous(), solution[:, -1].contiguous()


class LatentPreview:
    """colour = weight @ latent + bias, with weight [3, channels] and bias [3] in float32.

    Latents are those of the transformer (unit variance); colours run from -1 to 1.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight = weight
        self._bias = bias

    @classmethod
    def load(cls, folder: Path, channels: int, device: torch.device) -> LatentPreview | None:
        """The map that lies in a checkpoint folder, or None where there is none.

        Raises CheckpointError naming the file when its tensors are not `weight` [3, channels] and
        `bias` [3].
        """
        path = folder / PREVIEW_FILE
        if not path.exists():
            return None
        tensors = dict(read_tensors(path))
        found = {name: list(tensor.shape) for name, tensor in tensors.items()}
        expected = {"bias": [3], "weight": [3, channels]}
        if found != expected:
            raise CheckpointError(f"{path}: holds {found}, expected {expected}")
        return cls(tensors["weight"].float().to(device), tensors["bias"].float().to(device))

    def images(self, latents: Tensor) -> list[Image.Image]:
        """RGB images of latents [N, channels, h, w], 8 pixels a latent, smoothly interpolated."""
        colours = torch.einsum("kc,nchw->nkhw", self._weight, latents.float())
        colours = colours + self._bias[:, None, None]
        height, width = latents.shape[-2:]
        size = (width * PIXELS_PER_LATENT, height * PIXELS_PER_LATENT)
        return [image.resize(size, Image.Resampling.BICUBIC) for image in to_images(colours)]
