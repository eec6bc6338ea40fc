"""The warm Sana pipeline against diffusers on the same weights, and what batching brings.

One process holds both pipelines; they take turns. "Pipeline" is prompt to pictures at the model's
default size in guided steps, "step" one denoise step inside it. Batching is ours alone: images
per second of sixteen requests, denoised and decoded, in batches of 1 to 16.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.interleaved import compare, time_interleaved
from bench.run import table
from config.model_spec import ModelSpec
from models.catalogue import describe, discover
from models.pipeline import ImageRequest
from models.sana.pipeline import SanaPipeline

BATCH_SIZES = (1, 2, 4, 8, 16)
BATCHING_ROUNDS = 3
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _Diffusers:
    """The reference on the same checkpoint, with the time of every step."""

    def __init__(self, spec: ModelSpec, device: str, dtype: torch.dtype) -> None:
        import diffusers

        self._pipeline = diffusers.SanaPipeline.from_pretrained(spec.source, dtype=dtype)
        self._pipeline.to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._device = device
        self.step_seconds: list[float] = []

    def __call__(self, request: ImageRequest, output_type: str = "pil") -> Any:
        marks = [0.0]

        def mark(_pipeline: Any, _index: int, _timestep: Any, kwargs: Any) -> Any:
            _wait(self._device)
            marks.append(time.perf_counter())
            return kwargs

        result = self._pipeline(
            request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator().manual_seed(request.seed),
            use_resolution_binning=False,
            output_type=output_type,
            callback_on_step_end=mark,
        ).images
        # The first step has no mark before it.
        self.step_seconds += [after - before for before, after in itertools.pairwise(marks[1:])]
        return result


class _Ours:
    """Our pipeline, driven as a worker drives it, with the time of every step."""

    def __init__(self, spec: ModelSpec, device: str, dtype: torch.dtype) -> None:
        self.pipeline = SanaPipeline.load(spec, device=device, dtype=dtype)
        self._device = device
        self.step_seconds: list[float] = []

    def __call__(self, request: ImageRequest) -> Any:
        return self.pipeline.decode(self.denoise(request))

    def denoise(self, *requests: ImageRequest) -> Any:
        batch = [self.pipeline.prepare(request) for request in requests]
        for index in range(requests[0].num_inference_steps):
            started = time.perf_counter()
            self.pipeline.step(batch)
            _wait(self._device)
            if index:
                self.step_seconds.append(time.perf_counter() - started)
        return batch[0] if len(batch) == 1 else batch

    def in_batches(self, requests: list[ImageRequest], size: int) -> None:
        for start in range(0, len(requests), size):
            done = self.denoise(*requests[start : start + size])
            for generation in [done] if size == 1 else done:
                self.pipeline.decode(generation)


def run(
    rounds: int = 5,
    checkpoint: Path | None = None,
    threads: int = 1,
    device: str = "cpu",
    dtype: str = "float32",
    steps: int = 20,
    batching: bool = True,
) -> dict[str, Any]:
    """Milliseconds and ratios against diffusers, and images per second by batch size.

    `checkpoint` is the bundled `sana-demo` unless given; `batching` asks for the second part.
    """
    torch.set_num_threads(threads)
    spec = discover(["sana-demo"])[0] if checkpoint is None else describe(checkpoint)
    ours = _Ours(spec, device, _DTYPES[dtype])
    diffusers = _Diffusers(spec, device, _DTYPES[dtype])
    request = ImageRequest(
        prompt="a red circle on a blue background",
        negative_prompt="",
        width=spec.width.default,
        height=spec.height.default,
        num_inference_steps=steps,
        guidance_scale=spec.guidance_scale.default,
        num_images=1,
        seed=0,
        sampler="dpm-solver++",
    )
    serial = itertools.count()

    def unseen() -> ImageRequest:
        return dataclasses.replace(request, prompt=f"{request.prompt}, number {next(serial)}")

    whole = time_interleaved(
        {
            "diffusers": lambda: diffusers(unseen()),
            "ours, new prompt": lambda: ours(unseen()),
            "ours, known prompt": lambda: ours(request),
        },
        rounds=rounds,
    )
    # All steps inside the timed runs, which took turns; the first of each run is left out.
    step_seconds = {"diffusers": diffusers.step_seconds, "ours": ours.step_seconds}
    step_rows = [
        {
            "variant": name,
            "median_ms": statistics.median(seconds) * 1e3,
            "min_ms": min(seconds) * 1e3,
            "ratio": statistics.median(seconds) / statistics.median(step_seconds["diffusers"]),
        }
        for name, seconds in step_seconds.items()
    ]
    latents = torch.as_tensor(diffusers(request, "latent"))
    error = (ours.denoise(request).latents - latents).norm() / latents.norm()
    return {
        "model": spec.id,
        "device": device,
        "dtype": dtype,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "pipeline": compare(whole, "diffusers"),
        "step": step_rows,
        "latents_relative_error": float(error),
        "batching": [
            row
            for side in sorted({spec.width.minimum, spec.width.default})
            if batching
            for row in _batching(ours, dataclasses.replace(request, width=side, height=side))
        ],
    }


def _batching(ours: _Ours, request: ImageRequest) -> list[dict[str, Any]]:
    requests = [dataclasses.replace(request, seed=seed) for seed in range(max(BATCH_SIZES))]
    seconds = time_interleaved(
        {str(size): partial(ours.in_batches, requests, size) for size in BATCH_SIZES},
        rounds=BATCHING_ROUNDS,
    )
    return [
        {
            "side_px": request.width,
            "batch_size": int(name),
            "images_per_second": len(requests) / statistics.median(values),
            "speedup": statistics.median(
                one / own for one, own in zip(seconds["1"], values, strict=True)
            ),
        }
        for name, values in seconds.items()
    ]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32")
    parser.add_argument("--checkpoint", type=Path, help="a diffusers folder; default: sana-demo")
    arguments = parser.parse_args()
    figures = run(
        arguments.rounds,
        arguments.checkpoint,
        arguments.threads,
        arguments.device,
        arguments.dtype,
    )
    print(table(figures))


if __name__ == "__main__":
    main()
