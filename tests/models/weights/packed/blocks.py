"""Random blocks of every GGUF type for the tests of packed layers."""

from __future__ import annotations

import torch

from models.weights.gguf.format import BLOCK, QuantType
from models.weights.gguf.packed_tensor import PackedTensor

# Where the half-precision factors lie in a block, in halves.
FACTORS = {
    QuantType.Q4_0: (0,),
    QuantType.Q4_1: (0, 1),
    QuantType.Q5_0: (0,),
    QuantType.Q5_1: (0, 1),
    QuantType.Q8_0: (0,),
    QuantType.Q2_K: (40, 41),
    QuantType.Q3_K: (54,),
    QuantType.Q4_K: (0, 1),
    QuantType.Q5_K: (0, 1),
    QuantType.Q6_K: (104,),
    QuantType.IQ4_NL: (0,),
    QuantType.IQ4_XS: (0,),
}
QUANTISED = tuple(FACTORS)


def random_packed(
    type: QuantType, rows: int, columns: int, *, seed: int = 0, factors: float = 0.02
) -> PackedTensor:
    """Random bytes with scales and minima drawn from -factors..factors."""
    random = torch.Generator().manual_seed(seed)
    elements, size = BLOCK[type]
    if elements == 1:
        dtype = {4: torch.float32, 2: torch.float16}[size]
        dtype = torch.bfloat16 if type is QuantType.BF16 else dtype
        values = torch.randn(rows, columns, generator=random).to(dtype)
        return PackedTensor(values.view(torch.uint8), type, (rows, columns))
    shape = (rows, columns // elements, size)
    blocks = torch.randint(256, shape, dtype=torch.uint8, generator=random)
    for place in FACTORS[type]:
        blocks.view(torch.float16)[..., place].uniform_(-factors, factors, generator=random)
    return PackedTensor(blocks.view(rows, -1), type, (rows, columns))
