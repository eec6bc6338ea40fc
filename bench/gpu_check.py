"""`make gpu-check`: does the GPU compute what the CPU does, and how fast against diffusers?

For the image model: a small random transformer in float32 on both devices; the published 600M shape
with random weights in bfloat16, ours and diffusers' interleaved on the same weights, with the error
of each against float32; the bundled model from prompt to picture on both devices. For the video
model see `bench.gpu_check_wan`. `make gpu-check ARGS="wan_kernels wan_1_3b"` runs some parts only.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from bench import gpu_check_wan
from bench.device_timing import median_milliseconds
from models.sana.transformer import SanaTransformer, SanaTransformerConfig

SANA_600M = {
    "num_attention_heads": 36,
    "attention_head_dim": 32,
    "num_layers": 28,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "sample_size": 32,
}
SMALL = SANA_600M | {
    "num_attention_heads": 4,
    "num_layers": 4,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 64,
    "cross_attention_dim": 128,
    "caption_channels": 64,
    "sample_size": 8,
}
TEXT_TOKENS = 300
FLOAT32_TOLERANCE = 1e-4
BFLOAT16_ERROR_RATIO = 1.1
GREY_LEVELS = 2


def random_pair(shape: dict[str, Any]) -> tuple[SanaTransformer, Any]:
    """Our transformer and diffusers' with the same random float32 weights, on the CPU."""
    from diffusers import SanaTransformer2DModel

    torch.manual_seed(0)
    theirs = SanaTransformer2DModel(**shape).eval()
    ours = SanaTransformer(SanaTransformerConfig.from_json(shape)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(shape: dict[str, Any], size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, text states and timesteps of a guided pair at size x size latent pixels."""
    random = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 32, size, size, generator=random)
    text = torch.randn(2, TEXT_TOKENS, shape["caption_channels"], generator=random)
    return latents, text, torch.tensor([700.0, 700.0])


@torch.inference_mode()
def velocity(model: SanaTransformer, latents: Any, text: Any, timesteps: Any) -> torch.Tensor:
    """One evaluation of our transformer, everything computed anew."""
    conditioning = model.encode_text(text)
    return model(latents, model.embed_timesteps(timesteps), conditioning)


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Relative L2 error, computed in float64 on the CPU."""
    value, reference = value.double().cpu(), reference.double().cpu()
    return float((value - reference).norm() / reference.norm())


def check_float32(device: torch.device, shape: dict[str, Any] = SMALL) -> dict[str, Any]:
    """The same float32 network on the device and on the CPU."""
    ours, _ = random_pair(shape)
    arguments = inputs(shape, shape["sample_size"])
    expected = velocity(ours, *arguments)
    found = velocity(ours.to(device), *(value.to(device) for value in arguments))
    error = relative_error(found, expected)
    return {"relative_error": error, "allowed": FLOAT32_TOLERANCE, "ok": error < FLOAT32_TOLERANCE}


@torch.inference_mode()
def check_bfloat16(
    device: torch.device, size: int, shape: dict[str, Any] = SANA_600M
) -> dict[str, Any]:
    """Ours and diffusers' in bfloat16 at `size` latent pixels: errors and times."""
    ours, theirs = random_pair(shape)
    arguments = [value.to(device) for value in inputs(shape, size)]
    expected = velocity(ours.to(device), *arguments)
    ours, theirs = ours.bfloat16(), theirs.to(device).bfloat16()
    latents, text, timesteps = (value.bfloat16() for value in arguments)
    conditioning = ours.encode_text(text)
    time_modulation = ours.embed_timesteps(arguments[2])

    def our_step() -> torch.Tensor:
        return ours(latents, time_modulation, conditioning)

    def their_step() -> torch.Tensor:
        return theirs(latents, text, timesteps, return_dict=False)[0]

    our_error = relative_error(our_step(), expected)
    their_error = relative_error(their_step(), expected)
    times = median_milliseconds({"ours": our_step, "diffusers": their_step}, device)
    return {
        "size_px": 32 * size,
        "ours_ms": times["ours"],
        "diffusers_ms": times["diffusers"],
        "time_ratio": times["ours"] / times["diffusers"],
        "ours_error": our_error,
        "diffusers_error": their_error,
        "ok": our_error <= BFLOAT16_ERROR_RATIO * their_error,
    }


def check_pictures(device: torch.device, model: str = "sana-demo") -> dict[str, Any]:
    """The same requests on the device and on the CPU in float32, compared pixel by pixel."""
    import numpy

    from models.catalogue import discover
    from models.loading import load

    [spec] = discover([model])
    prompts = ("a red circle on a blue background", "a yellow square on a purple background")
    pictures: list[list[Any]] = []
    for place in (torch.device("cpu"), device):
        pipeline = load(spec, device=place, dtype=torch.float32)
        pictures.append([_picture(pipeline, prompt) for prompt in prompts])
    difference = max(
        int(abs(numpy.asarray(a, dtype=int) - numpy.asarray(b, dtype=int)).max())
        for a, b in zip(*pictures, strict=True)
    )
    return {"grey_levels": difference, "allowed": GREY_LEVELS, "ok": difference <= GREY_LEVELS}


def _picture(pipeline: Any, prompt: str) -> Any:
    from models.pipeline import ImageRequest

    spec = pipeline.spec
    generation = pipeline.prepare(
        ImageRequest(
            prompt=prompt,
            negative_prompt="",
            width=spec.width.default,
            height=spec.height.default,
            num_inference_steps=spec.num_inference_steps.default,
            guidance_scale=spec.guidance_scale.default,
            num_images=1,
            seed=7,
            sampler=spec.samplers[0],
        )
    )
    while not generation.is_done:
        pipeline.step([generation])
    return pipeline.decode(generation)[0]


def check_sana(device: torch.device) -> dict[str, Any]:
    """All three comparisons of the image model."""
    return {
        "float32_against_cpu": check_float32(device),
        "sana_600m_bfloat16": [check_bfloat16(device, size) for size in (16, 32)],
        "sana_demo_pictures": check_pictures(device),
    }


def agrees(figures: Any) -> bool:
    """Whether no part of some figures says that it is not `ok`."""
    if isinstance(figures, dict):
        return bool(figures.get("ok", True)) and all(map(agrees, figures.values()))
    return not isinstance(figures, list) or all(map(agrees, figures))


def main() -> int:
    """0 when the GPU agrees with the CPU, 1 when it does not, 2 without a GPU."""
    parts = {"sana": check_sana} | gpu_check_wan.PARTS
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"all, or some of {', '.join(parts)}")
    chosen = parser.parse_args().parts or list(parts)
    if unknown := set(chosen) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        print("gpu-check: torch finds no CUDA device on this machine", file=sys.stderr)
        return 2
    from bench.run import table, write_results

    # Otherwise float32 products are rounded to 10 bits and the comparison says nothing.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda")
    print(torch.cuda.get_device_name(device))
    results: dict[str, Any] = {}
    for name in chosen:
        figures = parts[name](device)
        print(f"\n== {name}\n{table(figures)}", flush=True)
        results[f"gpu_check_{name}"] = {"figures": figures}
    print(f"written to {write_results(results)}")
    return int(not agrees([entry["figures"] for entry in results.values()]))


if __name__ == "__main__":
    sys.exit(main())
