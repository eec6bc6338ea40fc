"""Examine the shipped clip checkpoint: `python -m models.demo.wan.evaluate --prompts 100`.

Held-out prompts go through our own pipeline in batches at the checkpoint's default settings, the
judge reads every clip, and scores and failures are printed. `--model` takes any bundled id or path,
so that the quantised files can be compared. Ends with exit code 1 when fewer prompts are shown
rightly than the target asks for.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from config.model_spec import ModelSpec
from models.catalogue import discover
from models.demo.wan.captions import ClipPrompt, held_out_prompts
from models.demo.wan.clip_judge import ClipVerdict, judge_clip
from models.pipeline import Clip, VideoRequest
from models.wan.pipeline import WanVacePipeline

TARGET = 0.9


def to_clip(clip: Clip) -> torch.Tensor:
    """A finished clip as the judge takes it: [3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(clip.frames).permute(3, 0, 1, 2).float() / 127.5 - 1.0


def default_request(spec: ModelSpec, prompt: str, seed: int, **changes: object) -> VideoRequest:
    """A request at the model's default settings, but for `changes`."""
    assert spec.video is not None
    settings: dict[str, object] = {
        "negative_prompt": "",
        "width": spec.width.default,
        "height": spec.height.default,
        "num_frames": spec.video.num_frames.default,
        "fps": spec.video.fps.default,
        "num_inference_steps": spec.num_inference_steps.default,
        "guidance_scale": spec.guidance_scale.default,
        "flow_shift": spec.video.flow_shift.default,
        "conditioning_scale": (spec.video.conditioning_scale.default,),
        "sampler": spec.samplers[0],
        **changes,
    }
    return VideoRequest(prompt=prompt, seed=seed, **settings)  # type: ignore[arg-type]


def generate(
    pipeline: WanVacePipeline, requests: Sequence[VideoRequest], batch_size: int = 8
) -> Iterator[Clip]:
    """One clip a request, in order, denoised in batches."""
    for start in range(0, len(requests), batch_size):
        batch = [pipeline.prepare(request) for request in requests[start : start + batch_size]]
        while not batch[0].is_done:
            pipeline.step(batch)
        for generation in batch:
            yield pipeline.decode(generation)


def examine(
    pipeline: WanVacePipeline, prompts: Sequence[ClipPrompt], **changes: object
) -> Iterator[tuple[ClipPrompt, ClipVerdict, Clip]]:
    """Generate and judge; the seed of a prompt is its place in the list."""
    requests = [
        default_request(pipeline.spec, prompt.text, seed, **changes)
        for seed, prompt in enumerate(prompts)
    ]
    for prompt, clip in zip(prompts, generate(pipeline, requests), strict=True):
        yield prompt, judge_clip(to_clip(clip), prompt.asked), clip


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the clip demo on held-out prompts.")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--model", default="wan-vace-demo", help="bundled id, folder or GGUF file")
    parser.add_argument("--residency", choices=("packed", "bf16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, dest="num_inference_steps")
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--flow-shift", type=float)
    parser.add_argument("--sampler")
    parser.add_argument("--pictures", type=Path, help="folder for the strips of clips that fail")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = ("num_inference_steps", "guidance_scale", "flow_shift", "sampler")
    changes = {name: getattr(arguments, name) for name in names if getattr(arguments, name)}
    (spec,) = discover([arguments.model])
    spec = spec.model_copy(update={"residency": arguments.residency})
    pipeline = WanVacePipeline.load(spec, device="cpu", dtype=torch.float32)
    prompts = held_out_prompts(arguments.prompts)
    asked, right, passed = Counter[str](), Counter[str](), 0
    for number, (prompt, verdict, clip) in enumerate(examine(pipeline, prompts, **changes)):
        passed += verdict.passed
        asked.update(verdict.right.keys())
        right.update(name for name, is_right in verdict.right.items() if is_right)
        if not verdict.passed:
            print(f"{number}: {prompt.text}: {'; '.join(verdict.reasons)}", flush=True)
            if arguments.pictures:
                arguments.pictures.mkdir(parents=True, exist_ok=True)
                Image.fromarray(strip(clip)).save(arguments.pictures / f"{number}.png")
    for name, count in asked.items():
        print(f"{name}: {right[name] / count:.1%} of {count}")
    share = passed / len(prompts)
    print(
        f"{spec.id}, {pipeline.residency}: {passed} of {len(prompts)} right = {share:.1%}, "
        f"target {TARGET:.0%}"
    )
    sys.exit(0 if share >= TARGET else 1)


def strip(clip: Clip):  # noqa: ANN201
    """All frames side by side, uint8 [H, T * W, 3]."""
    frames = clip.frames
    return frames.transpose(1, 0, 2, 3).reshape(frames.shape[1], -1, 3)


if __name__ == "__main__":
    main()
