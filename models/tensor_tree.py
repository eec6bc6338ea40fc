"""Tensors inside plain values: found, and moved from one device to another.

A value is a tensor, a tuple, list, dict or dataclass that may hold some, or anything else, which
holds none. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in `value`, as often as it occurs."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def moved(value: Any, device: torch.device | str) -> Any:
    """`value` with its tensors on `device`, bit by bit the same; without tensors, `value` itself.

    `value` is unchanged.
    """
    if isinstance(value, Tensor):
        return _moved(value, device)
    if next(tensors_in(value), None) is None:
        return value
    if isinstance(value, dict):
        return {name: moved(item, device) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(moved(item, device) for item in value)
    parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return dataclasses.replace(value, **{name: moved(part, device) for name, part in parts.items()})


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    return tensor.to(device)
