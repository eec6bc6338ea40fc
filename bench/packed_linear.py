"""The packed linear layer against the plain one and diffusers' GGUF layer, taking turns.

Layer sizes are those of Wan 1.3B, the input is one short clip of 768 tokens, blocks are random with
finite scales. The goals, of the plain layer's time: Q8_0 at most 1.10, Q4_K at most 1.30.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.interleaved import compare, time_interleaved
from bench.precision import DTYPE, DTYPE_NAME
from bench.run import table
from models.weights.gguf.format import BLOCK, QuantType
from models.weights.gguf.packed_tensor import PackedTensor
from models.weights.packed.linear import PackedLinear

TOKENS = 768
SIZES = ((1536, 1536), (8960, 1536), (1536, 8960))
"""(out_features, in_features) of attention, of the feed-forward layer's way in and its way out."""
TYPES = (QuantType.Q8_0, QuantType.Q4_K)

# Where the half-precision factors of a block lie, in halves.
_FACTORS = {QuantType.Q8_0: (0,), QuantType.Q4_K: (0, 1)}


def random_blocks(type: QuantType, out_features: int, in_features: int, seed: int) -> PackedTensor:
    """Random quants with scales of about 0.01."""
    random = torch.Generator().manual_seed(seed)
    elements, size = BLOCK[type]
    blocks = torch.randint(
        256, (out_features, in_features // elements, size), dtype=torch.uint8, generator=random
    )
    for place in _FACTORS[type]:
        blocks.view(torch.float16)[..., place].uniform_(0.005, 0.015, generator=random)
    return PackedTensor(blocks.view(out_features, -1), type, (out_features, in_features))


def _diffusers_layer(weight: PackedTensor, bias: Tensor) -> nn.Module:
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter
    from gguf import GGMLQuantizationType

    out_features, in_features = weight.shape
    layer = GGUFLinear(in_features, out_features, bias=True, compute_dtype=DTYPE)
    kind = GGMLQuantizationType(int(weight.type))
    layer.weight = GGUFParameter(weight.data, quant_type=kind)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _call(layer: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: layer(x)


def layer_figures(out_features: int, in_features: int, rounds: int) -> list[dict[str, Any]]:
    """All variants of one layer; `ratio` is to the plain layer."""
    x = torch.randn(TOKENS, in_features, dtype=DTYPE)
    bias = torch.randn(out_features, dtype=DTYPE)
    weight = torch.randn(out_features, in_features, dtype=DTYPE)
    variants: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: functional.linear(x, weight, bias),
    }
    for type in TYPES:
        packed = random_blocks(type, out_features, in_features, seed=int(type))
        variants[f"{type.name} packed"] = _call(PackedLinear(packed, bias), x)
        variants[f"{type.name} diffusers"] = _call(_diffusers_layer(packed, bias), x)
    rows = compare(time_interleaved(variants, rounds=rounds), "plain")
    for row in rows:
        row["min_ratio"] = row["min_ms"] / rows[0]["min_ms"]
    return [{"shape": f"{out_features}x{in_features}"} | row for row in rows]


@torch.inference_mode()
def run(rounds: int = 9, threads: int = 1) -> dict[str, Any]:
    """Milliseconds and ratios, the same thread count for all sides."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return {
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "dtype": DTYPE_NAME,
        "tokens": TOKENS,
        "layers": [row for sizes in SIZES for row in layer_figures(*sizes, rounds)],
    }


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(table(run(arguments.rounds, arguments.threads)))


if __name__ == "__main__":
    main()
