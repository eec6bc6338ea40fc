"""The video model's parts of `make gpu-check`; every function also runs on a CPU, for the tests.

Kernels of packed and 8-bit layers are held against the reference on the CPU. Steps of the published
1.3B and 14B shapes run from GGUF files of random blocks in each residency, with diffusers beside
them on the bfloat16 weights. Attention backends are timed at the lengths of real clips, and the
autoencoder decodes 81 frames of 832 x 480 beside diffusers'.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.device_timing import median_milliseconds
from bench.synthetic_gguf import (
    VACE_1_3B,
    VACE_14B,
    diffusers_config,
    random_blocks,
    write_random_model,
)
from bench.wan_steps import Clip, Sizes, diffusers_step, our_step, relative_difference
from config.model_spec import Residency
from models.wan.autoencoder import WanAutoencoder
from models.wan.autoencoder_config import WanAutoencoderConfig
from models.wan.transformer_config import WanVaceConfig
from models.wan.transformer_loading import load_transformer
from models.wan.transformer_names import to_diffusers
from models.weights.gguf.dequantize import dequantize
from models.weights.gguf.file_type import FileType
from models.weights.gguf.format import BLOCK, QuantType
from models.weights.gguf.packed_tensor import PackedTensor
from models.weights.gguf.writer import PlannedTensor
from models.weights.packed.fp8_linear import Fp8Linear
from models.weights.packed.linear import PackedLinear

RESIDENCIES: tuple[Residency, ...] = ("bf16", "packed", "fp8")
SHORT, MEDIUM, LONG = (3, 32, 32), (5, 60, 104), (21, 60, 104)
"""Latents of 9 frames of 256 x 256 and of 17 and 81 frames of 832 x 480."""

# One rounding of a result to bfloat16 is up to 0.4 %; sums in another order cost little more.
PRODUCT_TOLERANCE = 5e-3
FP8_TOLERANCE = 1e-2
# Forty layers of bfloat16 roundings lie between these.
STEP_TOLERANCE = 5e-2
DECODE_TOLERANCE = 2e-2


@torch.inference_mode()
def check_kernels(device: torch.device, rows: int = 1024, columns: int = 1536) -> dict[str, Any]:
    """Every block type: dequantised bit for bit as on the CPU, and products of few and many rows.

    Few rows go through the fused kernel, many through dequantisation. Rates are those of making
    bfloat16 of the blocks, in elements.
    """
    random = np.random.Generator(np.random.SFC64(0))
    generator = torch.Generator().manual_seed(0)
    figures = []
    for type in QuantType:
        if BLOCK[type][0] == 1:
            continue
        data = random_blocks(PlannedTensor("weight", (rows, columns), type), random)
        reference = dequantize(data.view(rows, -1), type, dtype=torch.float32)
        packed = PackedTensor(data.view(rows, -1).to(device), type, (rows, columns))
        layer = PackedLinear(packed)
        exact = torch.equal(layer.dequantized(torch.float32).cpu(), reference)
        errors = []
        for count in (8, 256):
            x = torch.randn(count, columns, generator=generator).bfloat16()
            expected = x.double() @ reference.bfloat16().double().T
            errors.append(relative_difference(layer(x.to(device)), expected))
        [milliseconds] = median_milliseconds(
            {"": lambda layer=layer: layer.dequantized(torch.bfloat16)}, device
        ).values()
        figures.append(
            {
                "type": type.name,
                "exact": exact,
                "few_rows_error": errors[0],
                "many_rows_error": errors[1],
                "giga_elements_per_s": rows * columns / milliseconds / 1e6,
                "ok": exact and max(errors) < PRODUCT_TOLERANCE,
            }
        )
    return {"allowed": PRODUCT_TOLERANCE, "types": figures}


@torch.inference_mode()
def check_fp8(device: torch.device, rows: int = 1536, columns: int = 1536) -> dict[str, Any]:
    """The device's own 8-bit product against the same numbers multiplied in float32."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(768, columns, generator=generator).bfloat16()
    expected = Fp8Linear(weight)(x.float())
    error = relative_difference(Fp8Linear(weight.to(device))(x.to(device)), expected)
    return {"relative_error": error, "allowed": FP8_TOLERANCE, "ok": error < FP8_TOLERANCE}


@torch.inference_mode()
def check_steps(
    device: torch.device,
    config: WanVaceConfig,
    file_type: FileType,
    clips: Mapping[str, tuple[Sizes, int]],
) -> dict[str, Any]:
    """Load a file of that shape in each residency and step each of `clips`: latents and rounds.

    Ratios are of medians to diffusers' with the same bfloat16 weights; differences are from ours in
    bfloat16. The file is in the page cache when it is loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vace.gguf"
        write_random_model(path, config, file_type)
        models: dict[str, Any] = {}
        loading = []
        for residency in RESIDENCIES:
            before = _allocated(device)
            started = time.perf_counter()
            models[residency] = load_transformer(
                path, device=device, dtype=torch.bfloat16, residency=residency
            )
            loading.append(
                {
                    "residency": residency,
                    "seconds": time.perf_counter() - started,
                    "device_gb": (_allocated(device) - before) / 1e9,
                }
            )
        models["diffusers"] = diffusers_twin(models["bf16"])
        rows = [
            row
            for name, (sizes, rounds) in clips.items()
            for row in _step_rows(name, Clip(config, sizes), models, device, rounds)
        ]
        size = path.stat().st_size
    return {"file": file_type.name, "file_gb": size / 1e9, "loading": loading, "steps": rows}


def _step_rows(
    name: str, clip: Clip, models: Mapping[str, Any], device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    steps: dict[str, Callable[[], Tensor]] = {
        variant: diffusers_step(model, clip) if variant == "diffusers" else our_step(model, clip)
        for variant, model in models.items()
    }
    truth = steps["bf16"]()
    differences = {variant: relative_difference(step(), truth) for variant, step in steps.items()}
    times = median_milliseconds(steps, device, rounds)
    return [
        {
            "clip": name,
            "tokens": clip.tokens,
            "variant": variant,
            "ms": milliseconds,
            "ratio": milliseconds / times["diffusers"],
            "difference": differences[variant],
            # The 8-bit model computes something else; how far it may be off is for eyes to judge.
            "ok": variant == "fp8" or differences[variant] < STEP_TOLERANCE,
        }
        for variant, milliseconds in times.items()
    ]


def diffusers_twin(ours: Any) -> Any:
    """Diffusers' transformer on the tensors of our bfloat16 one, in the types its loading gives."""
    from diffusers import WanVACETransformer3DModel

    with torch.device("meta"):
        theirs = WanVACETransformer3DModel.from_config(diffusers_config(ours.config)).eval()
    weights = {}
    for name, tensor in ours.state_dict().items():
        kept = "norm3" in name or "modulation" in name or "time_embedding" in name
        weights[to_diffusers(name)] = tensor.to(torch.float32 if kept else torch.bfloat16)
    theirs.load_state_dict(weights, assign=True)
    # The tables of positions are in no checkpoint, and came out without memory.
    theirs.rope = type(theirs.rope)(
        ours.config.head_dim, ours.config.patch_size, theirs.config.rope_max_seq_len
    ).to(ours.device)
    return theirs


@torch.inference_mode()
def time_attention(
    device: torch.device, heads: int = 40, lengths: Sequence[int] = (7_800, 32_760)
) -> dict[str, Any]:
    """Milliseconds of self-attention in bfloat16 by backend; a backend that refuses says why."""
    backends = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
    rows = []
    for tokens in lengths:
        generator = torch.Generator(device).manual_seed(0)
        query, key, value = torch.randn(
            3, 1, heads, tokens, 128, generator=generator, device=device, dtype=torch.bfloat16
        )
        for name, backend in [("default", None), *((each.name, each) for each in backends)]:

            def attend(
                backend: SDPBackend | None = backend,
                q: Tensor = query,
                k: Tensor = key,
                v: Tensor = value,
            ) -> Tensor:
                if backend is None:
                    return functional.scaled_dot_product_attention(q, k, v)
                with sdpa_kernel(backend):
                    return functional.scaled_dot_product_attention(q, k, v)

            row: dict[str, Any] = {"tokens": tokens, "backend": name}
            try:
                attend()
            except RuntimeError as error:
                rows.append(row | {"refused": str(error).splitlines()[0][:60]})
                continue
            [milliseconds] = median_milliseconds({name: attend}, device, 5).values()
            operations = 4 * heads * 128 * tokens**2
            rows.append(row | {"ms": milliseconds, "tflop_per_s": operations / milliseconds / 1e9})
    return {"heads": heads, "attention": rows}


@torch.inference_mode()
def check_autoencoder(
    device: torch.device,
    config: WanAutoencoderConfig = WanAutoencoderConfig(),  # noqa: B008  (it is frozen)
    sizes: Sizes = LONG,
    rounds: int = 3,
    latents_at_once: Sequence[int] = (1, 4),
) -> dict[str, Any]:
    """Decode a clip in bfloat16 with random weights: ours, by frames at once, and diffusers'."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    theirs = AutoencoderKLWan(
        base_dim=config.base_dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        temperal_downsample=list(config.temperal_downsample),
    ).eval()
    ours = WanAutoencoder(config).eval()
    ours.load_state_dict(theirs.state_dict())
    theirs, ours = (model.to(device, torch.bfloat16) for model in (theirs, ours))
    latents = torch.randn(1, config.z_dim, *sizes, generator=torch.Generator().manual_seed(1))
    latents = latents.to(device, torch.bfloat16)
    calls: dict[str, Callable[[], Tensor]] = {
        f"ours, {count} at once": lambda count=count: ours.decode(latents, latents_at_once=count)
        for count in latents_at_once
    }
    calls["diffusers"] = lambda: theirs.decode(latents, return_dict=False)[0]
    # It clips what it returns.
    truth = calls["diffusers"]()
    differences = {
        name: relative_difference(call().clamp(-1, 1), truth) for name, call in calls.items()
    }
    times = median_milliseconds(calls, device, rounds)
    return {
        "latents": "x".join(map(str, sizes)),
        "decode": [
            {
                "variant": name,
                "ms": milliseconds,
                "ratio": milliseconds / times["diffusers"],
                "difference": differences[name],
                "ok": differences[name] < DECODE_TOLERANCE,
            }
            for name, milliseconds in times.items()
        ],
    }


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


PARTS: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    "wan_kernels": check_kernels,
    "wan_fp8": check_fp8,
    "wan_attention": time_attention,
    "wan_autoencoder": check_autoencoder,
    "wan_1_3b": lambda device: check_steps(
        device, VACE_1_3B, FileType.Q8_0, {"short": (SHORT, 15), "long": (LONG, 5)}
    ),
    "wan_14b": lambda device: check_steps(
        device, VACE_14B, FileType.Q4_K_M, {"medium": (MEDIUM, 5), "long": (LONG, 3)}
    ),
}
"""What `bench.gpu_check` runs, by name."""
