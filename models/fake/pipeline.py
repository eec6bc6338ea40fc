"""The fake model as a `Pipeline`: arithmetic on tiny latents that shows every step taken.

Latents are whole multiples of 2^-16 in 0..1. A step replaces each value by a combination of itself,
of its predecessor, of the image's seed and of the step's number, modulo 1: exact in float32, so the
same on every device and in every batch, and different at the end if a step was lost, done twice,
or done out of turn. The pixels are thus a function of seed and number of steps alone, which
`docs/fake.md` gives in a few lines.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from config.model_spec import ModelSpec
from models.fake.request import FakeRequest
from models.pipeline import Generation, KeepGoing, to_the_end
from models.samplers import SAMPLERS
from models.samplers.batch_check import checked_batch
from models.samplers.sampled_generation import SampledGeneration

SHAPE = (3, 8, 8)
"""Channels, height and width of the latents of one image."""

LEVELS = 1 << 16
"""Different values that a latent may take."""

OWN, PREVIOUS = 25173, 13849
"""Weights of a value and of its predecessor in the next one."""

_HANG_SECONDS = 60.0


class FakeGeneration(SampledGeneration):
    """Latents [num_images, 3, 8, 8] of one request; `history[0]` are those before the last step.

    `ballast` is the memory that was asked for.
    """

    def __init__(self, request: FakeRequest, model: str, device: torch.device) -> None:
        plan = SAMPLERS[request.sampler](request.num_inference_steps, 1.0)
        seeds = [request.seed + index for index in range(request.num_images)]
        super().__init__(plan, torch.stack([_noise(seed) for seed in seeds]).to(device))
        self.request = request
        self.batch_key = (model, request.height, request.width)
        self.seeds = torch.tensor(seeds, device=device)
        # Written to, or most systems would not give it.
        self.ballast = torch.ones(request.memory_bytes, dtype=torch.uint8, device=device)


class FakePipeline:
    """A resident fake model; see `models.pipeline.Pipeline` for what each method promises."""

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        self.spec = spec
        self.residency = "float32"
        self._device = device

    def prepare(self, request: FakeRequest, keep_going: KeepGoing = to_the_end) -> FakeGeneration:
        """Draw the noise and take the memory."""
        keep_going()
        return FakeGeneration(request, self.spec.id, self._device)

    @torch.inference_mode()
    def step(self, batch: Sequence[Generation], keep_going: KeepGoing = to_the_end) -> None:
        """Take as long as the slowest member asks for, fail if one is to fail, else mix.

        The time is spent in halves, as that of a model which takes those of guidance in turn.
        Raises ValueError, before anything happens, for an empty batch, a member given twice, one
        that is done and members whose `batch_key` differs.
        """
        members = _checked(batch)
        half = max(member.request.step_seconds for member in members) / 2
        time.sleep(half)
        keep_going()
        time.sleep(half)
        images = sum(member.request.num_images for member in members)
        for member in members:
            _fail_if_asked(member.request, member.step_index + 1, images)
        latents = torch.cat([member.latents for member in members])
        previous = torch.cat([member.previous_denoised for member in members])
        counts = torch.tensor([len(member.latents) for member in members], device=self._device)
        numbers = torch.tensor([member.step_index + 1 for member in members], device=self._device)
        moved = _mixed(
            latents,
            previous,
            torch.cat([member.seeds for member in members]),
            numbers.repeat_interleave(counts),
        )
        sizes = counts.tolist()
        for member, own, past in zip(
            members, moved.split(sizes), latents.split(sizes), strict=True
        ):
            member.latents, member.history = own, (past, *member.history[1:])
            member.step_index += 1

    def drop_batch(self) -> None:
        """Nothing is kept for a batch."""

    def preview(self, generation: Generation) -> list[Image.Image]:
        """The latents as colours, 16 pixels wide."""
        return _pictures(generation.latents, 16, 16)

    def decode(
        self, generation: Generation, keep_going: KeepGoing = to_the_end
    ) -> list[Image.Image]:
        """The latents as colours at the requested size. Raises ValueError before the last step."""
        own = _own(generation)
        keep_going()
        if not own.is_done:
            raise ValueError(f"generation is at step {own.step_index} of {own.num_steps}")
        return _pictures(own.latents, own.request.width, own.request.height)


def _noise(seed: int) -> Tensor:
    """The latents [3, 8, 8] that a seed begins with."""
    count = int(np.prod(SHAPE))
    drawn = hashlib.shake_128(seed.to_bytes(8, "little")).digest(2 * count)
    values = np.frombuffer(drawn, "<u2").astype(np.float32) / LEVELS
    return torch.from_numpy(values.reshape(SHAPE))


def _mixed(latents: Tensor, previous: Tensor, seeds: Tensor, numbers: Tensor) -> Tensor:
    """The latents after step `numbers` [images] of images with `seeds` [images]."""
    own, past = (latents * LEVELS).long(), (previous * LEVELS).long()
    signs = ((2 * seeds + 1) * numbers).view(-1, 1, 1, 1)
    return ((OWN * own + PREVIOUS * past + signs) % LEVELS).float() / LEVELS


def _fail_if_asked(request: FakeRequest, number: int, images: int) -> None:
    """Whatever step `number` of `request`, in a batch of so many images, is to suffer."""
    if request.failure == "out_of_memory" and request.failure_above_images is not None:
        if number >= request.failure_step and images > request.failure_above_images:
            raise torch.OutOfMemoryError(f"out of memory with {images} images, as requested")
        return
    if number != request.failure_step:
        return
    if request.failure == "error":
        raise RuntimeError(f"step {number} fails as requested")
    if request.failure == "out_of_memory":
        raise torch.OutOfMemoryError(f"out of memory in step {number}, as requested")
    if request.failure == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    while request.failure == "hang":
        time.sleep(_HANG_SECONDS)


def _pictures(latents: Tensor, width: int, height: int) -> list[Image.Image]:
    levels = (latents * 256).byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    nearest = Image.Resampling.NEAREST
    return [Image.fromarray(picture).resize((width, height), nearest) for picture in levels]


def _checked(batch: Sequence[Generation]) -> list[FakeGeneration]:
    return checked_batch([_own(generation) for generation in batch])


def _own(generation: Generation) -> FakeGeneration:
    if not isinstance(generation, FakeGeneration):
        raise TypeError(f"{type(generation).__name__} is not a generation of a fake pipeline")
    return generation
