"""How a model's quantised weights rest in memory: a pure choice from sizes and free memory.

Converted to bfloat16 they cost nothing while stepping and most memory; packed as in the file they
are dequantised in every step, to the same numbers; in 8-bit floating point they are fastest where a
device multiplies that natively, but rounded a second time, so that mode is never chosen unasked.
What still does not fit stays in host memory layer by layer (`models.weights.offload`). Activations
steer the choice but seldom forbid it: most requests may be smaller than the default one.
"""

from __future__ import annotations

from dataclasses import dataclass

from config.model_spec import Residency

# Allocators lose some memory to fragmentation; asking for all that is free fails.
_USABLE = 0.95
_SLOTS = 2


@dataclass(frozen=True)
class Plan:
    """What to do: the mode, how many layers to keep in host memory, and one line saying why."""

    mode: Residency
    offload_layers: int
    reason: str


def choose_residency(
    *,
    packed_bytes: int,
    bf16_bytes: int,
    fp8_bytes: int,
    activations_bytes: int,
    free_bytes: int,
    has_fp8: bool,
    wanted: Residency | None,
    layers: int = 0,
    mapped_bytes: int = 0,
) -> Plan:
    """The plan for a model whose weights take so many bytes in each mode.

    `activations_bytes` is what a step of the default size needs beside the weights, `free_bytes`
    what the device has free now. `wanted` None chooses: bfloat16 where it fits, else packed, else
    packed with layers offloaded. `layers` of about equal size may be offloaded; 0 on devices that
    share the host's memory. There `mapped_bytes` of the packed weights are pages of a file, which
    can be dropped and read again.

    Where a mode was asked for, or there is no other memory to go to, the activations need not fit:
    whoever computes holds each request against the memory. Raises ValueError for fp8 on a device
    without it, MemoryError with the numbers when no plan fits.
    """
    if wanted == "fp8" and not has_fp8:
        raise ValueError(
            "residency fp8 was asked for, but the device does not multiply 8-bit floats "
            "(NVIDIA compute capability 8.9 or newer does)"
        )
    weights: dict[Residency, int] = {
        "packed": packed_bytes,
        "bf16": bf16_bytes,
        "fp8": fp8_bytes,
    }
    usable = int(free_bytes * _USABLE)
    room = usable - activations_bytes
    why = "asked for" if wanted else "chosen by free memory"
    candidates: tuple[Residency, ...] = (wanted,) if wanted else ("bf16", "packed")
    for mode in candidates:
        if weights[mode] <= room:
            return Plan(mode, 0, f"{mode} {why}: {_sizes(weights[mode], room)}")
    mode = candidates[-1]
    size = weights[mode]
    offloaded = _layers_to_offload(size, room, layers)
    if offloaded is not None:
        moved = f"{offloaded} of {layers} layers offloaded"
        return Plan(mode, offloaded, f"{mode} {why}: {_sizes(size, room)}, {moved}")
    if layers == 0:
        kept = size - min(size, mapped_bytes) if mode == "packed" else size
        if kept <= usable:
            pages = f", {_gb(size - kept)} of it pages of the file" if kept < size else ""
            left = f"a step of the default size takes {_gb(activations_bytes)} of the rest"
            return Plan(mode, 0, f"{mode} {why}: {_sizes(size, usable)}{pages}; {left}")
        raise MemoryError(f"{mode} weights take {_gb(kept)}, but {_gb(free_bytes)} are free")
    if wanted and _slots_bytes(size, layers) <= usable:
        left = f"a step of the default size takes {_gb(activations_bytes)}"
        moved = f"all {layers} layers offloaded"
        return Plan(mode, layers, f"{mode} {why}: {_sizes(size, usable)}, {moved}; {left}")
    raise MemoryError(
        f"{mode} weights take {_gb(size)} and a step of the default size {_gb(activations_bytes)}, "
        f"but {_gb(free_bytes)} are free, too little even with all {layers} layers in host memory"
    )


def _layers_to_offload(weights: int, room: int, layers: int) -> int | None:
    """The fewest layers in host memory that leave room for the rest and the copies under way."""
    if layers == 0:
        return None
    slots = _slots_bytes(weights, layers)
    for offloaded in range(1, layers + 1):
        if weights - weights * offloaded // layers + slots <= room:
            return offloaded
    return None


def _slots_bytes(weights: int, layers: int) -> int:
    return _SLOTS * -(-weights // layers)


def _sizes(weights: int, room: int) -> str:
    return f"{_gb(weights)} of weights in {_gb(max(room, 0))} of room"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
