"""Layers whose weights rest in host memory and visit the device for as long as they compute.

The device holds two slots, each as large as the largest such layer. While one layer computes out of
one slot, the next layer's weights are copied into the other on a stream of their own; the last
layer is followed by the first of the next step. Weights lie in pinned memory, all of a layer in one
piece, so that a layer is one asynchronous copy. Hooks on the layers do all of this: the model does
not know. A copy is hidden when it takes no longer than the layers computed meanwhile, which is why
layers that stay on the device are spread evenly between the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.weights.transfers import CudaTransfers, InOrderTransfers, Transfers

# Kernels read tensors in wide words; allocators align to as much.
_ALIGNMENT = 256
_SLOTS = 2


def offload(
    blocks: Sequence[nn.Module], device: torch.device, *, resident: int = 0
) -> LayerOffloader:
    """Run `blocks` on `device`, all but `resident` of them out of host memory.

    `blocks` are in the order in which a step calls them, each once. See `LayerOffloader`.
    """
    cuda = device.type == "cuda"
    transfers = CudaTransfers(device) if cuda else InOrderTransfers()
    return LayerOffloader(blocks, device, transfers, resident=resident)


class LayerOffloader:
    """Moves the weights of `blocks`; lives as long as the model, called by nobody.

    Calls out of order, steps broken off in the middle and repeated calls give the same results,
    only without the overlap. Parameters and buffers of an offloaded block are host tensors whenever
    the block is not computing. Not for training, and not for two threads stepping one model.

    `device_bytes` and `host_bytes` say what the slots and the pinned weights take. The pinned
    memory of a layer is rounded up to a power of two by torch.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        blocks: Sequence[nn.Module],
        device: torch.device,
        transfers: Transfers,
        *,
        resident: int = 0,
    ) -> None:
        """Raises ValueError when `resident` is not between 0 and the number of blocks."""
        if not 0 <= resident <= len(blocks):
            raise ValueError(f"resident is {resident}, expected 0..{len(blocks)}")
        self._transfers = transfers
        self._layers: list[_Layer] = []
        self._computing: _Slot | None = None
        chosen = _spread(len(blocks), len(blocks) - resident)
        for position, block in enumerate(blocks):
            if position not in chosen:
                block.to(device)
                continue
            index = len(self._layers)
            self._layers.append(_Layer(block, pinned=device.type == "cuda"))
            block.register_forward_pre_hook(partial(self._before, index))
            # Also after an error: the next call must find the block as it rests.
            block.register_forward_hook(partial(self._after, index), always_call=True)
        largest = max((layer.host.numel() for layer in self._layers), default=0)
        self._slots = [
            # The memory may still be read by kernels of its last owner.
            _Slot(index, torch.empty(largest, dtype=torch.uint8, device=device), transfers.mark())
            for index in range(min(_SLOTS, len(self._layers)))
        ]
        for layer in self._layers:
            layer.prepare([slot.buffer for slot in self._slots])
        self.device_bytes = sum(slot.buffer.numel() for slot in self._slots)
        self.host_bytes = sum(layer.host.numel() for layer in self._layers)

    def _before(self, index: int, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        slot = self._fetched(index)
        self._transfers.wait(slot.copied)
        self._computing = slot
        self._layers[index].use(slot.index)
        self._fetched((index + 1) % len(self._layers))

    def _after(self, index: int, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._layers[index].rest()
        if self._computing is not None:
            self._computing.free = self._transfers.mark()
            self._computing = None

    def _fetched(self, index: int) -> _Slot:
        """The slot that holds the layer, or will when its copy is done."""
        for slot in self._slots:
            if slot.layer == index:
                return slot
        slot = next(slot for slot in self._slots if slot is not self._computing)
        host = self._layers[index].host
        slot.layer = None
        slot.copied = self._transfers.copy(slot.buffer[: host.numel()], host, after=slot.free)
        slot.layer = index
        return slot


@dataclass(eq=False)
class _Slot:
    """Device memory for one layer: which one, when it has arrived, when it was last read."""

    index: int
    buffer: Tensor
    free: Any
    layer: int | None = None
    copied: Any = None


@dataclass(frozen=True)
class _Entry:
    """One parameter or buffer: where the module keeps it, and where in the piece its bytes lie."""

    holder: dict[str, Tensor]
    name: str
    start: int
    end: int
    dtype: torch.dtype
    shape: torch.Size
    is_parameter: bool

    def view(self, piece: Tensor) -> Tensor:
        tensor = piece[self.start : self.end].view(self.dtype).view(self.shape)
        return nn.Parameter(tensor, requires_grad=False) if self.is_parameter else tensor


class _Layer:
    """A block with all of its tensors in one piece of host memory, and again in each slot."""

    def __init__(self, block: nn.Module, *, pinned: bool) -> None:
        self._entries: list[_Entry] = []
        size = 0
        for holder, name, tensor in _tensors(block):
            end = size + tensor.numel() * tensor.element_size()
            is_parameter = isinstance(tensor, nn.Parameter)
            self._entries.append(
                _Entry(holder, name, size, end, tensor.dtype, tensor.shape, is_parameter)
            )
            size = -(-end // _ALIGNMENT) * _ALIGNMENT
        self.host = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._resting = [entry.view(self.host) for entry in self._entries]
        self._placed: list[list[Tensor]] = []
        for entry, resting in zip(self._entries, self._resting, strict=True):
            source = entry.holder[entry.name]
            resting.detach().copy_(source.detach())
        self.rest()

    def prepare(self, buffers: Sequence[Tensor]) -> None:
        """Make the tensors that lie in each of the slots' `buffers`."""
        self._placed = [[entry.view(buffer) for entry in self._entries] for buffer in buffers]

    def use(self, slot: int) -> None:
        """Compute with the weights in that slot."""
        self._assign(self._placed[slot])

    def rest(self) -> None:
        """Point back to host memory."""
        self._assign(self._resting)

    def _assign(self, tensors: list[Tensor]) -> None:
        for entry, tensor in zip(self._entries, tensors, strict=True):
            entry.holder[entry.name] = tensor


def _tensors(block: nn.Module) -> Iterator[tuple[dict[str, Tensor], str, Tensor]]:
    for module in block.modules():
        for holder in (module._parameters, module._buffers):
            for name, tensor in list(holder.items()):
                if tensor is not None:
                    yield holder, name, tensor


def _spread(total: int, count: int) -> set[int]:
    """`count` of the positions 0..total-1 at equal distances."""
    return {position * total // count for position in range(count)}
