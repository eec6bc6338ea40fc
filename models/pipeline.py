"""The border between model code and whoever drives it: `Pipeline`, `Generation`, `ImageRequest`.

A pipeline turns a request into a `Generation` (prepare), advances any number of compatible
generations by one denoise step each (step), and turns latents into pictures (preview, decode). The
driver decides which generations share a step; a generation is a value and holds everything needed
to go on with it, here or on another machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from config.model_spec import ModelSpec

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class ImageRequest:
    """A fully resolved text-to-image request: every field set, every range already checked.

    `width` and `height` are pixels; `seed` seeds the first image, image i uses `seed + i`.
    `sampler` is one of the spec's sampler names.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    num_images: int
    seed: int
    sampler: str


class Generation(ABC):
    """Everything needed to go on with one request: latents, sampler history, conditioning, step.

    Generations with equal `batch_key` may share a step, each at its own timestep. `latents` has
    shape [num_images, channels, height, width] and dtype float32. `state_dict` holds all that a
    step reads and that cannot be rebuilt cheaply from the request; after `load_state_dict` on a
    freshly prepared generation of the same request the remaining steps are bit-identical to an
    unbroken run in batches of the same composition.
    """

    batch_key: Hashable
    latents: Tensor
    step_index: int
    num_steps: int

    @property
    def is_done(self) -> bool:
        """True when every denoise step has been taken and the latents can be decoded."""
        return self.step_index >= self.num_steps

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Tensors (safetensors-writable) from which `load_state_dict` continues."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`. Raises ValueError when it belongs to another request's shape."""


class Pipeline(Protocol):
    """One resident model. Methods are called from one thread; none of them does I/O."""

    spec: ModelSpec

    def prepare(self, request: ImageRequest) -> Generation:
        """Encode the prompts, draw the noise and compute all that stays constant over the steps."""

    def step(self, batch: Sequence[Generation]) -> None:
        """Advance every member by one denoise step, in place.

        All members share one `batch_key` and none is done. If it raises, no member has advanced.
        """

    def preview(self, generation: Generation) -> list[Image]:
        """Small RGB pictures straight from the latents, cheap enough for every few steps."""

    def decode(self, generation: Generation) -> list[Image]:
        """The finished RGB pictures of a generation that `is_done`, at the requested size."""
