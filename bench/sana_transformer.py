"""Our Sana transformer against diffusers' on the same random weights, taking turns in one process.

Three sizes: one block of the published 600M shape as a guided step runs it (batch of two,
300 text tokens), a whole step of the demo shape, and the whole 600M model, which is also where both
are held against float32. Text keys and values come cached on our side, as in serving; diffusers
computes them in every call, as its pipeline does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.interleaved import compare, time_interleaved
from bench.precision import DTYPE, DTYPE_NAME
from bench.run import table
from models.sana.transformer import SanaTransformer, SanaTransformerConfig

SANA_600M = {
    "num_attention_heads": 36,
    "attention_head_dim": 32,
    "num_layers": 28,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 2304,
    "sample_size": 32,
}
DEMO = {
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "num_layers": 4,
    "num_cross_attention_heads": 3,
    "cross_attention_head_dim": 64,
    "cross_attention_dim": 192,
    "caption_channels": 128,
    "sample_size": 8,
    "interpolation_scale": 1.0,
}
DEMO_CONFIG = Path(__file__).parent.parent / "models/demo/sana-demo/transformer/config.json"
TEXT_TOKENS = 300
BATCH = 2
# Tokens that a short prompt really has; the negative prompt comes first.
SHORT_PROMPTS = (2, 60)
_ATTEMPTS = 3

Call = Callable[[], torch.Tensor]


class _Pair:
    """Both implementations of one shape, sharing one set of random weights."""

    def __init__(self, shape: dict[str, Any], dtype: torch.dtype) -> None:
        from diffusers import SanaTransformer2DModel

        torch.manual_seed(0)
        self.theirs = SanaTransformer2DModel(**shape).eval()
        with torch.device("meta"):
            self.ours = SanaTransformer(SanaTransformerConfig.from_json(dict(self.theirs.config)))
        self.ours.eval()
        self.cast(dtype)

    def cast(self, dtype: torch.dtype) -> None:
        """Round the weights to `dtype`."""
        # Not through diffusers' own `to`, which warns about casting.
        torch.nn.Module.to(self.theirs, dtype)
        self.ours.load_state_dict(self.theirs.state_dict(), assign=True)
        self.dtype = dtype

    def step(self, size: int, lengths: tuple[int, int], seed: int = 0) -> tuple[Call, Call]:
        """One guided evaluation at size x size latent pixels: diffusers' and ours."""
        random = torch.Generator().manual_seed(seed)
        config = self.ours.config
        latents = torch.randn(BATCH, config.in_channels, size, size, generator=random)
        text = torch.randn(BATCH, TEXT_TOKENS, config.caption_channels, generator=random)
        mask = torch.arange(TEXT_TOKENS) < torch.tensor(lengths)[:, None]
        timestep = torch.rand(1, generator=random) * 1000
        own_text = self.ours.encode_text(text.to(self.dtype), mask)
        own_time = self.ours.embed_timesteps(torch.cat([timestep, timestep / 2]))

        def theirs() -> torch.Tensor:
            return self.theirs(
                latents.to(self.dtype),
                text.to(self.dtype),
                timestep.expand(BATCH),
                encoder_attention_mask=mask,
                return_dict=False,
            )[0].float()

        def ours() -> torch.Tensor:
            return self.ours(latents, own_time.index(0), own_text)

        return theirs, ours

    def block(self, size: int, lengths: tuple[int, int]) -> tuple[Call, Call]:
        """The first block alone, on size x size tokens."""
        random = torch.Generator().manual_seed(0)
        dim = self.ours.config.inner_dim
        tokens = torch.randn(BATCH, size * size, dim, generator=random).to(self.dtype)
        text = torch.randn(BATCH, TEXT_TOKENS, self.ours.config.caption_channels, generator=random)
        text = text.to(self.dtype)
        mask = torch.arange(TEXT_TOKENS) < torch.tensor(lengths)[:, None]
        bias = ((1 - mask.to(self.dtype)) * -10000.0)[:, None]
        time = self.ours.embed_timesteps(torch.tensor([700.0]))
        projected = self.theirs.caption_norm(self.theirs.caption_projection(text))
        own_text = self.ours.encode_text(text, mask)

        def theirs() -> torch.Tensor:
            modulation = time.modulation.flatten(1).expand(BATCH, -1)
            block = self.theirs.transformer_blocks[0]
            return block(tokens, None, projected, bias, modulation, size, size)

        def ours() -> torch.Tensor:
            modulation = self.ours.block_modulations(time)[0]
            key_value = own_text.key_values[:, 0]
            block = self.ours.transformer_blocks[0]
            return block(tokens, modulation, key_value, own_text.bias, size, size)

        return theirs, ours


def _relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value.double() - truth.double()).norm() / truth.double().norm())


def _compared(calls: tuple[Call, Call], rounds: int) -> list[dict[str, Any]]:
    seconds = time_interleaved(dict(zip(("diffusers", "ours"), calls, strict=True)), rounds=rounds)
    rows = compare(seconds, "diffusers")
    for row in rows:
        row["min_ratio"] = row["min_ms"] / rows[0]["min_ms"]
    return rows


def block_figures(rounds: int) -> list[dict[str, Any]]:
    """A 600M block with all text tokens in use, and with short prompts."""
    pair = _Pair(SANA_600M | {"num_layers": 1}, DTYPE)
    return [
        {"side_px": side, "text_tokens": name} | row
        for side in (512, 1024)
        for name, lengths in (
            ("300 of 300", (TEXT_TOKENS, TEXT_TOKENS)),
            ("2 and 60 of 300", SHORT_PROMPTS),
        )
        for row in _compared(pair.block(side // 32, lengths), rounds)
    ]


def demo_figures(rounds: int) -> list[dict[str, Any]]:
    """A whole step of the demo model's shape at 64 to 256 pixels."""
    shape = json.loads(DEMO_CONFIG.read_text()) if DEMO_CONFIG.exists() else DEMO
    shape = {key: value for key, value in shape.items() if not key.startswith("_")}
    rows = []
    for dtype in {torch.float32: None, DTYPE: None}:
        pair = _Pair(shape, dtype)
        rows += [
            {"dtype": str(dtype).removeprefix("torch."), "tokens": size * size} | row
            for size in (2, 4, 8)
            # A call takes milliseconds: many rounds cost little.
            for row in _compared(pair.step(size, (2, 9)), rounds * 5)
        ]
    return rows


def model_figures(rounds: int) -> dict[str, Any]:
    """The whole 600M model at 512 pixels: errors, then a step in DTYPE."""
    pair = _Pair(SANA_600M, torch.float32)
    full = (TEXT_TOKENS, TEXT_TOKENS)
    seeds = range(_ATTEMPTS)
    exact = []
    float32_error = 0.0
    for seed in seeds:
        theirs, ours = pair.step(16, full, seed)
        exact.append(theirs())
        float32_error = max(float32_error, _relative_error(ours(), exact[-1]))
    figures = {
        "parameters": sum(parameter.numel() for parameter in pair.ours.parameters()),
        "float32_relative_error": float32_error,
    }
    if DTYPE is torch.bfloat16:
        pair.cast(DTYPE)
        figures |= bfloat16_errors(pair, full, exact)
    return figures | {"step_512px": _compared(pair.step(16, full), rounds)}


def bfloat16_errors(
    pair: _Pair, lengths: tuple[int, int], exact: Sequence[torch.Tensor]
) -> dict[str, Any]:
    """Errors of both sides against the float32 results of the first seeds, and their ratio."""
    errors: dict[str, list[float]] = {"diffusers": [], "ours": []}
    for seed, truth in enumerate(exact):
        theirs, ours = pair.step(16, lengths, seed)
        errors["diffusers"].append(_relative_error(theirs(), truth))
        errors["ours"].append(_relative_error(ours(), truth))
    means = {name: sum(values) / len(values) for name, values in errors.items()}
    return {
        "bfloat16_error": means,
        "bfloat16_error_ratio": means["ours"] / means["diffusers"],
    }


@torch.inference_mode()
def run(rounds: int = 7, threads: int = 1) -> dict[str, Any]:
    """Milliseconds, ratios to diffusers and errors; the same thread count for both sides."""
    torch.set_num_threads(threads)
    return {
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "dtype": DTYPE_NAME,
        "block_600m": block_figures(rounds),
        "demo_step": demo_figures(rounds),
        "model_600m": model_figures(rounds),
    }


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(table(run(arguments.rounds, arguments.threads)))


if __name__ == "__main__":
    main()
