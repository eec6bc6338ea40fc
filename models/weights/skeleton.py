"""Modules without weights: built for names and shapes alone, to be filled from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoRandomValues(TorchFunctionMode):
    """Drawing initial values does nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # Initialisers come in whole: inside their own call no mode is active any more.
        if func is torch.Tensor.normal_ or func is torch.nn.init.normal_:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def skeleton() -> Iterator[None]:
    """Modules constructed inside have all parameters and buffers on the meta device.

    Nothing is allocated and nothing drawn. Constructors should fill with `normal_` and the like
    rather than compute: arithmetic on the meta device, and drawing normally distributed values
    there, make torch import its symbolic shape machinery, which takes longer than torch itself.
    """
    with torch.device("meta"), _NoRandomValues():
        yield
