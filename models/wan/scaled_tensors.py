"""Weights in 8-bit floats that have a scale beside them, as ComfyUI stores them.

A matrix `x.weight` comes with `x.scale_weight`, in newer files `x.weight_scale`: what its numbers
are to be multiplied by. Named tensors come in; those that are weights go out, each with its scale.
What only tells how to multiply in 8 bits (scales of activations, markers) is left out. Imports no
tensor library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from models.errors import CheckpointError, UnsupportedCheckpoint

if TYPE_CHECKING:
    from torch import Tensor

_MARKER = "scaled_fp8"
_SCALES = (".scale_weight", ".weight_scale")
_SCALES_OF_ACTIVATIONS = (".scale_input", ".input_scale")
_FORMAT = ".comfy_quant"
# Others also pack or rotate the numbers, so that a scale alone does not bring them back.
_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_LONGEST_FORMAT = 4096


def is_marker(name: str) -> bool:
    """Whether a tensor of this name says no more than that a file has scales.

    Files that were converted to something else often still hold it.
    """
    return name.rpartition(".")[2] == _MARKER


def with_scales(
    tensors: Sequence[tuple[str, Tensor]],
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """The weights among `tensors`, in order, and what to multiply each by.

    A scale is float32, one number or a column with one for each row. Raises CheckpointError, one
    line naming the tensor, for a scale of another form, without its weight or given twice, and
    UnsupportedCheckpoint for weights in a format that scales alone do not bring back.
    """
    names = {name for name, _ in tensors}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors}
    scales: dict[str, Tensor] = {}
    weights: list[tuple[str, Tensor]] = []
    for name, tensor in tensors:
        stem = name.rpartition(".")[0]
        if name.endswith(_SCALES):
            weight = f"{stem}.weight"
            if weight not in names:
                raise CheckpointError(f"tensor {name!r} is a scale, but there is no {weight!r}")
            if weight in scales:
                raise CheckpointError(f"tensor {weight!r} has two scales, {name!r} is the second")
            scales[weight] = _scale(name, tensor, shapes[weight])
        elif name.endswith(_FORMAT):
            _check_format(name, tensor)
        elif not name.endswith(_SCALES_OF_ACTIVATIONS) and not is_marker(name):
            weights.append((name, tensor))
    for name, tensor in weights:
        yield name, tensor, scales.get(name)


def _scale(name: str, tensor: Tensor, weight: tuple[int, ...]) -> Tensor:
    if tensor.is_floating_point():
        if tensor.numel() == 1:
            return tensor.float().reshape(())
        if len(weight) == 2 and tuple(tensor.shape) == (weight[0], 1):
            return tensor.float()
    raise CheckpointError(
        f"tensor {name!r} holds {list(tensor.shape)} of {tensor.dtype}, "
        "expected one floating-point scale, or one for each row"
    )


def _check_format(name: str, tensor: Tensor) -> None:
    """The tensor is a JSON document, byte by byte."""
    try:
        found = json.loads(bytes(tensor.flatten()[:_LONGEST_FORMAT].tolist()))["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CheckpointError(f"tensor {name!r} names no format of numbers") from None
    if found not in _FORMATS:
        raise UnsupportedCheckpoint(
            f"tensor {name!r}: the format is {found!r}, supported: {' or '.join(_FORMATS)}"
        )
