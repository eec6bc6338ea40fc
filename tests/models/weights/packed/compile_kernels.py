"""Compiles the Triton kernels for a GPU that need not be there, and prints what came of it.

A script for `test_triton_kernels`: arguments are compute capabilities.
"""

from __future__ import annotations

import json
import sys

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from models.weights.gguf.format import QuantType
from models.weights.packed import triton_dequantize, triton_linear

ALIGNED = [["tt.divisibility", 16]]
POINTERS = {"data": "*u8", "halves": "*fp16", "x": "*bf16", "bias": "*bf16", "out": "*bf16"}
CONSTANTS = {
    "TYPE": int(QuantType.Q4_K),
    "GROUPS_PER_PROGRAM": 64,
    "HAS_BIAS": True,
    "ROWS": 64,
    "FEATURES": 32,
    "GROUPS": 4,
}


def assembly(kernel, capability: int) -> str:
    """PTX of `kernel` for aligned bfloat16 tensors of sizes that are multiples of 16."""
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in CONSTANTS else POINTERS.get(name, "i32") for name in names
    }
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(n),): value for n, value in CONSTANTS.items() if n in names},
        attrs={
            (names.index(n),): ALIGNED
            for n, kind in signature.items()
            if kind != "constexpr" and n not in ("rows", "last_group")
        },
    )
    target = GPUTarget("cuda", capability, 32)
    return compile(source, target=target, options={"enable_fp_fusion": False}).asm["ptx"]


if __name__ == "__main__":
    found = {}
    for capability in map(int, sys.argv[1:]):
        dequantize = assembly(triton_dequantize._dequantize_kernel, capability)
        linear = assembly(triton_linear._linear_kernel, capability)
        found[capability] = {
            "fused_multiply_adds": dequantize.count("fma.rn.f32"),
            "wide_stores": dequantize.count("st.global.v4"),
            "tensor_core_products": linear.count("mma.sync") + linear.count("mma_async.sync"),
            "spills": linear.count(".local"),
        }
    print(json.dumps(found))
