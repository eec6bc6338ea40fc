"""A pipeline on tiny tensors: real arithmetic, a chosen step time, and failures by prompt.

Words in a prompt make trouble where they say: `fail-prepare`, `fail-step`, `fail-decode`,
`fail-preview`, `nan`, `oom-prepare`, `oom-decode`, `oom-above:2` (a step of more than two images
runs out of memory), `lost` (the device breaks), `hang` (a step never returns), `die` (the process
is killed in its third step), `endless-decode` (piece after piece, until it is left).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from config.model_spec import FloatParameter, IntParameter, ModelSpec, VideoLimits
from models.pipeline import Clip, Generation, KeepGoing, Request, VideoRequest, to_the_end


def fake_spec(model: str = "fake") -> ModelSpec:
    size = IntParameter(default=64, minimum=32, maximum=512, multiple_of=32)
    return ModelSpec(
        id=model,
        family="sana",
        width=size,
        height=size,
        num_inference_steps=IntParameter(default=4, minimum=1, maximum=1000),
        guidance_scale=FloatParameter(default=4.5, minimum=1.0, maximum=20.0),
        samplers=("dpm-solver++", "flow-euler"),
        source=Path("nowhere"),
    )


def fake_clip_spec(model: str = "clips") -> ModelSpec:
    one = FloatParameter(default=1.0, minimum=0.0, maximum=2.0)
    return ModelSpec.model_validate(
        fake_spec(model).model_dump()
        | {
            "task": "video",
            "num_images": IntParameter(default=1, minimum=1, maximum=1),
            "video": VideoLimits(
                num_frames=IntParameter(default=9, minimum=1, maximum=81),
                fps=FloatParameter(default=16.0, minimum=1.0, maximum=60.0),
                flow_shift=FloatParameter(default=5.0, minimum=0.1, maximum=100.0),
                conditioning_scale=one,
                num_conditioning_scales=2,
                max_reference_images=3,
                max_pixels=64 * 64 * 81,
            ),
        }
    )


class FakeGeneration(Generation):
    """Noise that fades towards the seed's colour."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.batch_key = (request.height, request.width)
        self.step_index = 0
        self.num_steps = request.num_inference_steps
        self.place = "device"
        self.latents = torch.stack(
            [
                torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(request.seed + i))
                for i in range(request.num_images)
            ]
        )

    def to(self, device: torch.device | str) -> None:
        """Where it is told to be; a worker of these tests computes on the CPU and parks there."""
        self.place = "host" if device == "cpu" else "device"
        self.latents = self.latents.clone()

    def state_dict(self) -> dict[str, Tensor]:
        return {"latents": self.latents, "step_index": torch.tensor(self.step_index)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state["latents"].shape != self.latents.shape:
            raise ValueError(f"latents are {list(state['latents'].shape)}")
        self.latents = state["latents"]
        self.step_index = int(state["step_index"])


class FakePipeline:
    """`seconds(images)` is how long a step lasts; `wait` makes it last that long."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        seconds: Callable[[int], float] = lambda images: 0.0,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.spec = spec
        self.residency = "float32"
        self.batches: list[list[int]] = []
        self.batches_dropped = 0
        self.on_step: Callable[[], None] = lambda: None
        self.on_piece: Callable[[str, KeepGoing], None] = lambda method, keep_going: keep_going()
        self._seconds = seconds
        self._wait = wait

    def prepare(self, request: Request, keep_going: KeepGoing = to_the_end) -> FakeGeneration:
        self.on_piece("prepare", keep_going)
        words = request.prompt.split()
        if "fail-prepare" in words:
            raise RuntimeError("no such word")
        if "oom-prepare" in words:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return FakeGeneration(request)

    def step(self, batch: Sequence[Generation], keep_going: KeepGoing = to_the_end) -> None:
        members = [g for g in batch if isinstance(g, FakeGeneration)]
        assert len(members) == len(batch) > 0
        assert len({g.batch_key for g in members}) == 1
        assert not any(g.is_done for g in members)
        assert {g.place for g in members} == {"device"}, "stepped where it is not"
        images = sum(g.request.num_images for g in members)
        self.batches.append([g.request.seed for g in members])
        self._wait(self._seconds(images))
        self.on_step()
        self.on_piece("step", keep_going)
        for member in members:
            self._make_trouble(member, images)
        for member in members:
            member.latents = member.latents * 0.9 + 0.001 * member.step_index
            if "nan" in member.request.prompt.split():
                member.latents = member.latents / 0 * 0
            member.step_index += 1

    def drop_batch(self) -> None:
        self.batches_dropped += 1

    def preview(self, generation: Generation) -> list[Image.Image]:
        if "fail-preview" in self._own(generation).request.prompt.split():
            raise RuntimeError("no preview")
        return self._pictures(generation.latents, 16, 16)

    def decode(
        self, generation: Generation, keep_going: KeepGoing = to_the_end
    ) -> list[Image.Image]:
        assert generation.is_done
        self.on_piece("decode", keep_going)
        assert self._own(generation).place == "device", "decoded where it is not"
        request = self._own(generation).request
        while "endless-decode" in request.prompt.split():
            time.sleep(0.01)
            keep_going()
        if "fail-decode" in request.prompt.split():
            raise ValueError("a broken decoder\nwith details")
        if "oom-decode" in request.prompt.split():
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
            )
        return self._pictures(generation.latents, request.width, request.height)

    def _make_trouble(self, member: FakeGeneration, images: int) -> None:
        for word in member.request.prompt.split():
            if word == "fail-step":
                raise RuntimeError("a bad step")
            if word == "lost":
                raise RuntimeError("CUDA error: device-side assert triggered")
            if word == "die" and member.step_index == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            if word == "hang":
                time.sleep(3600)
            if word.startswith("oom-above:") and images > int(word.removeprefix("oom-above:")):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    @staticmethod
    def _own(generation: Generation) -> FakeGeneration:
        assert isinstance(generation, FakeGeneration)
        return generation

    @staticmethod
    def _pictures(latents: Tensor, width: int, height: int) -> list[Image.Image]:
        pixels = (latents * 255).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
        nearest = Image.Resampling.NEAREST
        return [Image.fromarray(p).resize((width, height), nearest) for p in pixels]


class FakeClipPipeline(FakePipeline):
    """Makes a clip of the same colours in which one grey column moves; `requests` remembers."""

    def __init__(self, spec: ModelSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.requests: list[VideoRequest] = []

    def prepare(self, request: Request, keep_going: KeepGoing = to_the_end) -> FakeGeneration:
        assert isinstance(request, VideoRequest)
        self.requests.append(request)
        return super().prepare(request, keep_going)

    def preview(self, generation: Generation) -> list[Image.Image]:
        return 3 * super().preview(generation)

    def decode(  # type: ignore[override]
        self, generation: Generation, keep_going: KeepGoing = to_the_end
    ) -> Clip:
        (picture,) = super().decode(generation, keep_going)
        request = self._own(generation).request
        assert isinstance(request, VideoRequest)
        frames = np.stack([np.asarray(picture)] * request.num_frames)
        for index, frame in enumerate(frames):
            frame[:, index * request.width // request.num_frames] = 128
        return Clip(frames, request.fps)
