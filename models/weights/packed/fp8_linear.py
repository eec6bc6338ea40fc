"""A linear layer in 8-bit floating point: weights requantised once at load, inputs in every call.

Both operands are float8_e4m3fn with one float32 scale a row: a row of the weight is one output
feature, a row of the input one token. Devices from compute capability 8.9 on multiply them on their
tensor cores with scales applied to the float32 sum; anywhere else the same numbers are multiplied
in float32, which is slow and meant for checking. Reference for the format: Micikevicius et al.,
"FP8 Formats for Deep Learning", arXiv 2209.05433.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DTYPE = torch.float8_e4m3fn
MULTIPLE = 16
"""Both sizes of a weight must be multiples of it: the tensor cores' kernels ask for that."""

_LARGEST = torch.finfo(DTYPE).max
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def supports_fp8(device: torch.device) -> bool:
    """Whether `device` multiplies 8-bit floats natively."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def fits_fp8(out_features: int, in_features: int) -> bool:
    """Whether a weight of these sizes can be held by a `Fp8Linear`."""
    return out_features % MULTIPLE == 0 and in_features % MULTIPLE == 0


class Fp8Linear(nn.Module):
    """`x @ weight.T + bias` with `weight` float8_e4m3fn [out_features, in_features].

    Buffers: `weight`, `scale` float32 [out_features], `bias` [out_features] or None. For inference.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Requantise `weight` [out_features, in_features] in any floating dtype.

        Raises ValueError when a size is no multiple of `MULTIPLE`.
        """
        super().__init__()
        self.out_features, self.in_features = weight.shape
        if not fits_fp8(self.out_features, self.in_features):
            raise ValueError(
                f"fp8 weight has shape {list(weight.shape)}, expected multiples of {MULTIPLE}"
            )
        values, scale = quantize_rows(weight)
        self.register_buffer("weight", values)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features] in the dtype of `x`."""
        values, scale = quantize_rows(x.reshape(-1, self.in_features))
        multiply = scaled_mm if supports_fp8(x.device) else reference_mm
        out = multiply(values, scale, self.weight, self.scale)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes, for printing the module."""
        return f"{self.in_features}, {self.out_features}"


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` [rows, columns] as float8_e4m3fn and float32 scales [rows]: x is about values * scale.

    A scale maps the largest magnitude of its row to the largest finite float8, 448.
    """
    x = x.float()
    scale = x.abs().amax(dim=1).div_(_LARGEST).clamp_(min=_SMALLEST_SCALE)
    # The division may round up past the largest value, which some conversions make a NaN.
    values = (x / scale[:, None]).clamp_(-_LARGEST, _LARGEST)
    return values.to(DTYPE), scale


def scaled_mm(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """[rows, out_features] in bfloat16, by the device's own 8-bit matrix product."""
    return torch._scaled_mm(
        x,
        weight.t(),
        scale_a=x_scale[:, None],
        scale_b=weight_scale[None, :],
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def reference_mm(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """What `scaled_mm` computes, in float32 [rows, out_features]."""
    return (x.float() @ weight.float().t()) * x_scale[:, None] * weight_scale[None, :]
