"""Examine the shipped checkpoint: `python -m models.demo.evaluate --grammar core --prompts 300`.

Held-out prompts go through our own pipeline in batches at the checkpoint's default settings, the
judge reads every picture, and scores and failures are printed. Ends with exit code 1 when fewer
prompts are shown rightly than the grammar's target asks for.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from config.model_spec import ModelSpec
from models.catalogue import describe
from models.demo.grammar import Grammar, Prompt, held_out_prompts
from models.demo.judge import Verdict, judge
from models.pipeline import ImageRequest
from models.sana.pipeline import SanaPipeline

TARGETS: dict[Grammar, float] = {"core": 0.98, "full": 0.95}
CHECKPOINT = Path(__file__).parent / "sana-demo"


def to_picture(image: Image) -> Tensor:
    """An RGB image as the judge takes it: [3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 127.5 - 1.0


def default_request(
    spec: ModelSpec, prompt: str, seed: int, **changes: int | float
) -> ImageRequest:
    """A request at the model's default settings, but for `changes`."""
    settings: dict[str, int | float] = {
        "width": spec.width.default,
        "height": spec.height.default,
        "num_inference_steps": spec.num_inference_steps.default,
        "guidance_scale": spec.guidance_scale.default,
        **changes,
    }
    return ImageRequest(
        prompt=prompt,
        negative_prompt="",
        width=int(settings["width"]),
        height=int(settings["height"]),
        num_inference_steps=int(settings["num_inference_steps"]),
        guidance_scale=settings["guidance_scale"],
        num_images=1,
        seed=seed,
        sampler=spec.samplers[0],
    )


def generate(
    pipeline: SanaPipeline, requests: list[ImageRequest], batch_size: int = 8
) -> Iterator[Image]:
    """One picture a request, in order, denoised in batches."""
    for start in range(0, len(requests), batch_size):
        batch = [pipeline.prepare(request) for request in requests[start : start + batch_size]]
        while not batch[0].is_done:
            pipeline.step(batch)
        for generation in batch:
            yield pipeline.decode(generation)[0]


def examine(
    pipeline: SanaPipeline, prompts: list[Prompt], **changes: int | float
) -> Iterator[tuple[Prompt, Verdict, Image]]:
    """Generate and judge; the seed of a prompt is its place in the list."""
    requests = [
        default_request(pipeline.spec, prompt.text, seed, **changes)
        for seed, prompt in enumerate(prompts)
    ]
    for prompt, image in zip(prompts, generate(pipeline, requests), strict=True):
        yield prompt, judge(to_picture(image), prompt.asked), image


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the demo checkpoint on held-out prompts.")
    parser.add_argument("--grammar", choices=("core", "full"), default="core")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int)
    parser.add_argument("--height", type=int)
    parser.add_argument("--steps", type=int, dest="num_inference_steps")
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--pictures", type=Path, help="folder for the pictures that fail")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = ("width", "height", "num_inference_steps", "guidance_scale")
    changes = {name: getattr(arguments, name) for name in settings if getattr(arguments, name)}
    pipeline = SanaPipeline.load(describe(arguments.checkpoint), device="cpu", dtype=torch.float32)
    prompts = held_out_prompts(arguments.grammar, arguments.prompts)
    asked, right, passed = Counter[str](), Counter[str](), 0
    for number, (prompt, verdict, image) in enumerate(examine(pipeline, prompts, **changes)):
        passed += verdict.passed
        asked.update(verdict.right.keys())
        right.update(name for name, is_right in verdict.right.items() if is_right)
        if not verdict.passed:
            print(f"{number}: {prompt.text}: {'; '.join(verdict.reasons)}", flush=True)
            if arguments.pictures:
                arguments.pictures.mkdir(parents=True, exist_ok=True)
                image.save(arguments.pictures / f"{number}.png")
    for name, count in asked.items():
        print(f"{name}: {right[name] / count:.1%} of {count}")
    share, target = passed / len(prompts), TARGETS[arguments.grammar]
    print(
        f"{arguments.grammar}: {passed} of {len(prompts)} right = {share:.1%}, target {target:.0%}"
    )
    sys.exit(0 if share >= target else 1)


if __name__ == "__main__":
    main()
