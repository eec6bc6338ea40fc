"""A linear layer whose weight stays quantised, as it lies in the GGUF file.

In every call the weight is dequantised into memory that all layers share and multiplied from there,
once for the whole batch, so both branches of guidance pay for one dequantisation. For few rows of
input, when that costs more than the product, the two are done in one pass: on a CPU tile by tile,
on CUDA devices in a Triton kernel. See `kernel_choice`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.weights.gguf.dequantize import dequantize
from models.weights.gguf.packed_tensor import PackedTensor
from models.weights.packed.kernel_choice import Kernel, choose_kernel, has_triton
from models.weights.packed.scratch import scratch

_ALIGNMENT = 4
# Elements of a tile: 4 MB in float32, which a cache holds between being written and being read.
_TILE = 1 << 20
# Rows of the weight that a matrix product takes at once; other numbers leave it a slower rest.
_ROWS_TOGETHER = 32


class PackedLinear(nn.Module):
    """`x @ weight.T + bias` with `weight` in GGUF blocks. For inference: weights get no gradient.

    Buffers: `packed` uint8 [out_features, bytes per row], possibly a read-only view of a mapped
    file, never written to; `bias` [out_features] in any floating dtype, or None.
    """

    packed: Tensor
    bias: Tensor | None

    def __init__(self, weight: PackedTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.type = weight.type
        data = weight.data
        # Scales are read as wider numbers than bytes; files with such an alignment are rare.
        aligned = data.is_contiguous() and data.storage_offset() % _ALIGNMENT == 0
        self.register_buffer(
            "packed", data if aligned else data.clone(memory_format=torch.contiguous_format)
        )
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features], computed in the dtype of `x`."""
        kernel = self._kernel(x.dtype, x.numel() // self.in_features)
        if kernel is Kernel.FUSED:
            from models.weights.packed import triton_linear

            return triton_linear.linear(x, self.packed, self.type, self.bias)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if kernel is Kernel.TILED:
            return self._by_tiles(x, bias)
        return functional.linear(x, self._weight(x.dtype), bias)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [out_features, in_features] as a new tensor in `dtype`."""
        shape = (self.out_features, self.in_features)
        return self._fill(torch.empty(shape, dtype=dtype, device=self.packed.device))

    def extra_repr(self) -> str:
        """Sizes and block type, for printing the module."""
        return f"{self.in_features}, {self.out_features}, {self.type.name}"

    def _by_tiles(self, x: Tensor, bias: Tensor | None) -> Tensor:
        # As pieces of `dequantize` do, a tile grows with the caches that the threads have.
        elements = _TILE * max(1, torch.get_num_threads() // 4)
        rows = max(1, elements // self.in_features // _ROWS_TOGETHER) * _ROWS_TOGETHER
        products = []
        for start in range(0, self.out_features, rows):
            packed = self.packed[start : start + rows]
            shape = (len(packed), self.in_features)
            tile = scratch(shape, x.dtype, packed.device)
            dequantize(packed, self.type, dtype=x.dtype, out=tile)
            part = None if bias is None else bias[start : start + rows]
            products.append(functional.linear(x, tile, part))
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)

    def _weight(self, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype`, valid until the next layer of this thread asks for its own."""
        if self._kernel(dtype) is Kernel.VIEW:
            return self.packed.view(dtype)
        shape = (self.out_features, self.in_features)
        return self._fill(scratch(shape, dtype, self.packed.device))

    def _fill(self, out: Tensor) -> Tensor:
        kernel = self._kernel(out.dtype)
        if kernel is Kernel.VIEW:
            return out.copy_(self.packed.view(out.dtype))
        if kernel is Kernel.TRITON:
            from models.weights.packed import triton_dequantize

            return triton_dequantize.dequantize(self.packed, self.type, out)
        return dequantize(self.packed, self.type, dtype=out.dtype, out=out)

    def _kernel(self, dtype: torch.dtype, rows: int | None = None) -> Kernel:
        device_type = self.packed.device.type
        return choose_kernel(self.type, dtype, rows, device_type=device_type, triton=has_triton())
