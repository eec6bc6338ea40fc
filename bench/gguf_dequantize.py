"""Our dequantisation of GGUF blocks against diffusers', taking turns in one process.

One weight of the 1.3B Wan feed-forward's shape, 8960 x 1536, random blocks of each type, made
ready to be multiplied: ours into a scratch tensor that is used again, theirs as their GGUF linear
does it. A linear layer on 768 tokens stands beside as a measure.
Goals: at least 4 times diffusers' rate for Q8_0, 2.5 times for Q4_K.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch.nn import functional

from bench.interleaved import compare, time_interleaved
from bench.precision import DTYPE, DTYPE_NAME
from bench.run import table
from models.weights.gguf.dequantize import dequantize
from models.weights.gguf.format import BLOCK, QuantType

ROWS, COLUMNS, TOKENS = 8960, 1536, 768
GOALS = {QuantType.Q8_0: 4.0, QuantType.Q4_K: 2.5}
PLAIN = (QuantType.F32, QuantType.F16, QuantType.BF16)


def type_figures(type: QuantType, rounds: int) -> dict[str, Any]:
    """Milliseconds of both sides, the ratio of their rates, and what ours adds to a linear."""
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

    random = torch.Generator().manual_seed(int(type))
    elements, size = BLOCK[type]
    shape = (ROWS, COLUMNS // elements * size)
    data = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    theirs = GGUFParameter(data, quant_type=int(type))
    scratch = torch.empty(ROWS, COLUMNS, dtype=DTYPE)
    weight = torch.empty_like(scratch).normal_(generator=random)
    tokens = torch.randn(TOKENS, COLUMNS, generator=random).to(DTYPE)
    seconds = time_interleaved(
        {
            "diffusers": lambda: dequantize_gguf_tensor(theirs).to(DTYPE),
            "ours": lambda: dequantize(data, type, out=scratch),
            "linear": lambda: functional.linear(tokens, weight),
        },
        rounds=rounds,
    )
    rows = {row["variant"]: row for row in compare(seconds, "ours")}
    return {
        "type": type.name,
        "diffusers_ms": rows["diffusers"]["median_ms"],
        "ours_ms": rows["ours"]["median_ms"],
        "rate_ratio": rows["diffusers"]["ratio"],
        "min_ratio": rows["diffusers"]["min_ms"] / rows["ours"]["min_ms"],
        "goal": GOALS.get(type, ""),
        "of_linear": 1 / rows["linear"]["ratio"],
    }


@torch.inference_mode()
def run(rounds: int = 7, threads: int = 1) -> dict[str, Any]:
    """A row for each quantised type; the same thread count for both sides."""
    torch.set_num_threads(threads)
    return {
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "weight": f"{ROWS} x {COLUMNS}, to {DTYPE_NAME}",
        "linear": f"{TOKENS} tokens, {DTYPE_NAME}",
        "dequantize": [type_figures(type, rounds) for type in QuantType if type not in PLAIN],
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
