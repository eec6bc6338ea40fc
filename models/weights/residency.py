"""How a model's quantised weights rest in memory: a pure choice from sizes and free memory.

Converted to bfloat16 they cost nothing while stepping and most memory; packed as in the file they
are dequantised in every step, to the same numbers; in 8-bit floating point they are fastest where a
device multiplies that natively, but rounded a second time, so that mode is never chosen unasked.
What still does not fit stays in host memory layer by layer (`models.weights.offload`).
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
) -> Plan:
    """The plan for a model whose weights take so many bytes in each mode.

    `activations_bytes` is what a step needs beside the weights, `free_bytes` what the device has
    free now. `wanted` None chooses: bfloat16 where it fits, else packed, else packed with layers
    offloaded. `layers` of about equal size may be offloaded; 0 on devices that share the host's
    memory. Raises ValueError for fp8 on a device without it, MemoryError with the numbers when no
    plan fits.
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
    room = int(free_bytes * _USABLE) - activations_bytes
    why = "asked for" if wanted else "chosen by free memory"
    candidates: tuple[Residency, ...] = (wanted,) if wanted else ("bf16", "packed")
    for mode in candidates:
        if weights[mode] <= room:
            sizes = f"{_gb(weights[mode])} of weights in {_gb(max(room, 0))} of room"
            return Plan(mode, 0, f"{mode} {why}: {sizes}")
    mode = candidates[-1]
    offloaded = _layers_to_offload(weights[mode], room, layers)
    if offloaded is None:
        raise MemoryError(
            f"{mode} weights take {_gb(weights[mode])} and a step {_gb(activations_bytes)}, "
            f"but {_gb(free_bytes)} are free"
            + (f", too little even with all {layers} layers in host memory" if layers else "")
        )
    sizes = f"{_gb(weights[mode])} of weights in {_gb(room)} of room"
    return Plan(mode, offloaded, f"{mode} {why}: {sizes}, {offloaded} of {layers} layers offloaded")


def _layers_to_offload(weights: int, room: int, layers: int) -> int | None:
    """The fewest layers in host memory that leave room for the rest and the copies under way."""
    if layers == 0:
        return None
    slots = _SLOTS * -(-weights // layers)
    for offloaded in range(1, layers + 1):
        if weights - weights * offloaded // layers + slots <= room:
            return offloaded
    return None


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
