"""Our Wan-VACE blocks against diffusers' on the same random weights, taking turns in one process.

One trunk block and one VACE block of the published 1.3B shape on the 768 tokens of a
clip of 9 frames at 256 x 256. Text keys and values come cached on our side, as in serving;
diffusers projects the padded text in every call, as its pipeline does. Both are held against the
same blocks in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.interleaved import compare, time_interleaved
from bench.precision import DTYPE, DTYPE_NAME
from bench.run import table
from models.wan.rope import rotations
from models.wan.transformer import WanVaceConfig, WanVaceTransformer
from models.wan.transformer_names import to_original

VACE_1_3B = {
    "num_attention_heads": 12,
    "ffn_dim": 8960,
    "num_layers": 1,
    "vace_layers": [0],
}
GRID = (3, 16, 16)
TEXT_TOKENS = 40

Call = Callable[[], Tensor]


class _Pair:
    """Both implementations of one block of each kind, and inputs for them."""

    def __init__(self) -> None:
        from diffusers import WanVACETransformer3DModel

        torch.manual_seed(0)
        self.theirs = WanVACETransformer3DModel(**VACE_1_3B).eval()
        with torch.device("meta"):
            self.ours = WanVaceTransformer(WanVaceConfig.from_json(dict(self.theirs.config)))
        self.ours.eval()
        dim = self.ours.config.dim
        tokens = GRID[0] * GRID[1] * GRID[2]
        self._x = torch.randn(1, tokens, dim)
        self._context = torch.randn(1, tokens, dim)
        self._prompt = torch.randn(TEXT_TOKENS, self.ours.config.text_dim)
        self.cast(torch.float32)

    def cast(self, dtype: torch.dtype) -> None:
        """Round the weights to `dtype`; the reference keeps norms and modulation in float32."""
        torch.nn.Module.to(self.theirs, dtype)
        for name, parameter in self.theirs.named_parameters():
            if "norm2" in name or "scale_shift_table" in name:
                parameter.data = parameter.data.float()
        weights = {to_original(name): value for name, value in self.theirs.state_dict().items()}
        self.ours.load_state_dict(weights, assign=True)
        self.dtype = dtype

    def calls(self, *, vace: bool) -> tuple[Call, Call]:
        """One evaluation of the trunk block or of the VACE block: diffusers' and ours."""
        x, context = self._x.to(self.dtype), self._context.to(self.dtype)
        modulation = self.ours.embed_timesteps(torch.tensor([700.0])).modulation
        text = self.ours.encode_text([self._prompt])
        rows = rotations(self.ours.config.head_dim, GRID, x.device)
        padded = torch.zeros(1, 512, self._prompt.shape[1], dtype=self.dtype)
        padded[0, :TEXT_TOKENS] = self._prompt
        embedded = self.theirs.condition_embedder.text_embedder(padded)
        rotary = self.theirs.rope(torch.empty(1, 16, GRID[0], 2 * GRID[1], 2 * GRID[2]))
        own_key_value = text.key_values[:, int(vace)]

        def their_trunk() -> Tensor:
            result: Tensor = self.theirs.blocks[0](x, embedded, modulation, rotary)
            return result

        def our_trunk() -> Tensor:
            result: Tensor = self.ours.blocks[0](x, modulation, own_key_value, text.bias, rows)
            return result

        def their_vace() -> Tensor:
            block = self.theirs.vace_blocks[0]
            hint: Tensor = block(x, embedded, context, modulation, rotary)[0]
            return hint

        def our_vace() -> Tensor:
            block = self.ours.vace_blocks[0]
            hint: Tensor = block(context, x, modulation, own_key_value, text.bias, rows)[1]
            return hint

        return (their_vace, our_vace) if vace else (their_trunk, our_trunk)


def _relative_error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth.double()).norm() / truth.double().norm())


@torch.inference_mode()
def run(rounds: int = 7, threads: int = 1) -> dict[str, Any]:
    """Milliseconds, ratios to diffusers and errors; the same thread count for both sides."""
    torch.set_num_threads(threads)
    pair = _Pair()
    kinds = {"trunk block": False, "VACE block": True}
    exact = {kind: pair.calls(vace=vace)[0]() for kind, vace in kinds.items()}
    float32_error = max(
        _relative_error(pair.calls(vace=vace)[1](), exact[kind]) for kind, vace in kinds.items()
    )
    pair.cast(DTYPE)
    rows = []
    for kind, vace in kinds.items():
        calls = dict(zip(("diffusers", "ours"), pair.calls(vace=vace), strict=True))
        timed = compare(time_interleaved(calls, rounds=rounds), "diffusers")
        for row in timed:
            error = _relative_error(calls[row["variant"]](), exact[kind])
            rows.append({"block": kind} | row | {"error": error})
    return {
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "dtype": DTYPE_NAME,
        "float32_relative_error": float32_error,
        "blocks_1_3b_768_tokens": rows,
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
