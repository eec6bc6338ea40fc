"""Copies from host to device beside the computation, and the events that keep the two in order."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Transfers(Protocol):
    """A queue of copies that runs beside the queue of computations."""

    def mark(self) -> Any:
        """An event that has happened once everything computed so far is done."""

    def copy(self, target: Tensor, source: Tensor, *, after: Any) -> Any:
        """Begin to copy once `after` has happened; returns the event of the copy's end."""

    def wait(self, event: Any) -> None:
        """Compute nothing more until `event` has happened."""


class CudaTransfers:
    """Copies on a stream of their own; `source` is pinned, `target` on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def mark(self) -> torch.cuda.Event:
        """An event on the stream that computes now."""
        return torch.cuda.current_stream(self._device).record_event()

    def copy(self, target: Tensor, source: Tensor, *, after: torch.cuda.Event) -> torch.cuda.Event:
        """Queue the copy; the host does not wait."""
        self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        # A model may be let go while the copy runs: its memory must stay taken until the end.
        target.record_stream(self._stream)
        return self._stream.record_event()

    def wait(self, event: torch.cuda.Event) -> None:
        """Make the computing stream wait; the host does not."""
        torch.cuda.current_stream(self._device).wait_event(event)


class InOrderTransfers:
    """Copies at once: for devices that have one queue only."""

    def mark(self) -> None:
        """Nothing runs ahead, so there is nothing to tell apart."""

    def copy(self, target: Tensor, source: Tensor, *, after: None) -> None:
        """Done when it returns."""
        target.copy_(source)

    def wait(self, event: None) -> None:
        """What was copied is there."""
