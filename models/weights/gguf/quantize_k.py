"""Numbers into K-quant blocks, by a search for the scales that leave the least squared error.

Taking a sub-block's scale from its extremes wastes levels on outliers. Here each sub-block tries
several grids, takes by least squares the scale (and minimum) that suits each grid's levels, and
keeps the best; then, the super-block's half-precision factors being known, it tries the integer
scales and minima next to the rounded ones with the error they really leave. The first step is the
idea of ggml's `make_qx_quants` and `make_qkx2_quants`; the second makes up for what rounding the
scales costs. Every weight counts alike.

Sub-blocks are columns, float32 [elements, sub-blocks], so that every operation runs along memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Levels beyond the format's own that a grid may have, and (signed types) relative to its levels.
_OFFSET_GRIDS = (-0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9)
_SIGNED_GRIDS = tuple(-0.16 + 0.02 * step for step in range(17))
# The smallest half-precision number; spreads far below it are no spread at all.
_SMALLEST_HALF = 2.0**-24
_NO_SPREAD = 1e-12


def with_minima(
    blocks: Tensor, sub_blocks: int, levels: int, scale_levels: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fit x = (d * scale) * q - (dmin * minimum) to super-blocks, float32 [n, 256].

    `levels` and `scale_levels` are the greatest q and the greatest scale and minimum. Returns the
    factors (d, dmin) float16 [n, 2], scales and minima uint8 [n, sub_blocks] and q uint8 [n, 256].
    """
    n = blocks.shape[0]
    x = blocks.view(n * sub_blocks, -1).T.contiguous()
    scale, minimum = _fit_offset(x, levels)
    d = _factor(scale.view(n, -1).amax(1, keepdim=True) / scale_levels)
    dmin = _factor(minimum.view(n, -1).amax(1, keepdim=True) / scale_levels)
    scales = _rounded(scale.view(n, -1), d).clamp_(0, scale_levels)
    minima = _rounded(minimum.view(n, -1), dmin).clamp_(0, scale_levels)
    best = torch.full_like(scale, torch.inf)
    chosen_scales, chosen_minima = scales, minima
    for scale_step, minimum_step in _neighbours():
        tried_scales = (scales + scale_step).clamp_(0, scale_levels)
        tried_minima = (minima + minimum_step).clamp_(0, scale_levels)
        scale, minimum = (tried_scales * d).flatten(), (tried_minima * dmin).flatten()
        q = _offset_levels(x, scale, minimum, levels)
        error = _sum(q.mul_(scale).sub_(minimum).sub_(x).square_())
        better = (error < best).view(n, -1)
        best = torch.minimum(best, error)
        chosen_scales = torch.where(better, tried_scales, chosen_scales)
        chosen_minima = torch.where(better, tried_minima, chosen_minima)
    q = _offset_levels(x, (chosen_scales * d).flatten(), (chosen_minima * dmin).flatten(), levels)
    factors = torch.cat([d, dmin], 1).half()
    return factors, chosen_scales.byte(), chosen_minima.byte(), q.byte().T.reshape(n, 256)


def signed(blocks: Tensor, levels: int, scale_levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fit x = (d * scale) * q to super-blocks of 16 sub-blocks, float32 [n, 256].

    q lies in [-levels, levels - 1], the scale alike in terms of `scale_levels`. Returns d float16
    [n, 1], scales int8 [n, 16] and q int8 [n, 256].
    """
    n = blocks.shape[0]
    x = blocks.view(n * 16, 16).T.contiguous()
    scale = _fit_signed(x, levels).view(n, 16)
    widest = scale.gather(1, scale.abs().argmax(1, keepdim=True))
    d = _factor(widest / -scale_levels)
    scales = _rounded(scale, d).clamp_(-scale_levels, scale_levels - 1)
    best = torch.full_like(scale, torch.inf).flatten()
    chosen = scales
    for step in (0, -1, 1):
        tried = (scales + step).clamp_(-scale_levels, scale_levels - 1)
        scale = (tried * d).flatten()
        q = _signed_levels(x, scale, levels)
        error = _sum(q.mul_(scale).sub_(x).square_())
        chosen = torch.where((error < best).view(n, 16), tried, chosen)
        best = torch.minimum(best, error)
    q = _signed_levels(x, (chosen * d).flatten(), levels)
    return d.half(), chosen.to(torch.int8), q.to(torch.int8).T.reshape(n, 256)


def _neighbours() -> Iterator[tuple[int, int]]:
    """Steps of scale and minimum, staying first: it is kept when nothing is better."""
    yield 0, 0
    for scale_step in (-1, 0, 1):
        for minimum_step in (-1, 0, 1):
            if scale_step or minimum_step:
                yield scale_step, minimum_step


def _factor(value: Tensor) -> Tensor:
    """The half-precision number nearest to `value`, as float32; not zero unless `value` is."""
    rounded = value.half().float()
    smallest = torch.copysign(torch.full_like(value, _SMALLEST_HALF), value)
    return torch.where((rounded == 0) & (value.abs() > _NO_SPREAD), smallest, rounded)


def _rounded(value: Tensor, unit: Tensor) -> Tensor:
    """The whole number of `unit` nearest to `value`; zero where the unit is."""
    return torch.where(unit != 0, value / unit, 0.0).round_()


def _sum(values: Tensor) -> Tensor:
    """Sums down the columns of [elements, sub-blocks], a power of two of elements.

    In an order of its own: that of `Tensor.sum` depends on the width and the machine, and then so
    would the grid that wins, and the bytes of the file.
    """
    while values.shape[0] > 1:
        half = values.shape[0] // 2
        values = values[:half] + values[half:]
    return values[0]


def _inverse(value: Tensor) -> Tensor:
    return torch.where(value.abs() > _NO_SPREAD, 1 / value, 0.0)


def _offset_levels(x: Tensor, scale: Tensor, minimum: Tensor, levels: int) -> Tensor:
    return (x + minimum).mul_(_inverse(scale)).round_().clamp_(0, levels)


def _signed_levels(x: Tensor, scale: Tensor, levels: int) -> Tensor:
    return (x * _inverse(scale)).round_().clamp_(-levels, levels - 1)


def _fit_offset(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Real scale and minimum, both at least 0, float32 [sub-blocks], for x = scale * q - minimum.

    A grid fixes the q. Scale and minimum then follow by least squares, and the error they leave is
    the sum of squares less what they explain, so that no grid needs a second pass for its error.
    """
    count = x.shape[0]
    low = x.amin(0).clamp_(max=0)
    spread = x.amax(0).clamp_(min=0).sub_(low)
    inverse = _inverse(spread)
    # Counted from the minimum and in units of the spread, sums are of like size for every weight.
    z = (x - low).mul_(inverse)
    base = -low * inverse
    sum_z = _sum(z)
    best = torch.full_like(low, -torch.inf)
    scale, minimum = inverse * spread / levels, base
    for more in _OFFSET_GRIDS:
        q = (z * (levels + more)).round_().clamp_(max=levels)
        sum_q = _sum(q)
        sum_qz = _sum(q * z)
        sum_qq = _sum(q.square_())
        # z = slope * q + intercept.
        slope = (count * sum_qz - sum_q * sum_z) / (count * sum_qq - sum_q * sum_q)
        intercept = (sum_z - slope * sum_q) / count
        explained = slope * sum_qz + intercept * sum_z
        # A minimum below zero cannot be stored: such a line has to go through x = 0, z = base.
        pinned = intercept > base
        sum_qx = sum_qz - base * sum_q
        pinned_slope = sum_qx / sum_qq
        pinned_explained = pinned_slope * sum_qx + base * (2 * sum_z - count * base)
        slope = torch.where(pinned, pinned_slope, slope)
        explained = torch.where(pinned, pinned_explained, explained)
        # Comparisons with the NaN of a block that has one level only are false.
        better = (explained > best) & (slope > 0)
        best = torch.where(better, explained, best)
        scale = torch.where(better, slope, scale)
        minimum = torch.where(better, (base - intercept).clamp_(min=0), minimum)
    return scale * spread, minimum * spread


def _fit_signed(x: Tensor, levels: int) -> Tensor:
    """Real scale of either sign, float32 [sub-blocks]: x is about scale * q, |q| up to `levels`.

    The value that is largest in magnitude gets the sign that has one level more.
    """
    widest = x.gather(0, x.abs().argmax(0, keepdim=True))[0]
    inverse = _inverse(widest)
    z = x * inverse
    best = torch.full_like(widest, -torch.inf)
    scale = torch.full_like(widest, -1 / levels)
    for more in _SIGNED_GRIDS:
        q = (z * (-levels * (1 + more))).round_().clamp_(-levels, levels - 1)
        sum_qz = _sum(q * z)
        sum_qq = _sum(q.square_())
        explained = sum_qz * sum_qz / sum_qq
        better = explained > best
        best = torch.where(better, explained, best)
        scale = torch.where(better, sum_qz / sum_qq, scale)
    return torch.where(inverse != 0, scale * widest, 0.0)
