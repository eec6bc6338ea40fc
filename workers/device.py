"""The device a worker computes on: which one, in which dtype, and how to talk to it.

The engine measures and recovers through a `Device`; CUDA runs asynchronously, so a step's seconds
mean something only after `synchronize`, and memory freed by Python returns to other users only by
`release_memory`. torch is imported when a device is resolved, not before.
"""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from config.settings import Settings

if TYPE_CHECKING:
    import torch

# Sticky CUDA errors: after one of these every later call in the process fails too.
_LOST = ("CUDA error", "device-side assert", "unspecified launch failure", "ECC error")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class DeviceLost(Exception):
    """The device cannot be used by this process any more; only a new process can go on."""


@dataclass(frozen=True)
class Device:
    """Where and how models run: a torch device such as `cpu` or `cuda:0`, and the weights' dtype.

    `dtype` is one of float32, bfloat16, float16.
    """

    name: str
    dtype: str

    @classmethod
    def resolve(cls, settings: Settings) -> Device:
        """What `settings.device` and `settings.dtype` mean on this machine.

        `auto` is CUDA where it is available, else the CPU; weights are then bfloat16 on CUDA and
        float32 on the CPU. On the CPU a worker takes its share of the cores, and all workers
        together leave one to the API and Redis. Raises ValueError, naming the setting, when the
        device asked for is not there.
        """
        import torch

        name = settings.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name.startswith("cuda"):
            found = torch.cuda.device_count()
            index = int(name.partition(":")[2] or 0)
            if index >= found:
                raise ValueError(f"device {name} was asked for, but {found} CUDA device(s) exist")
            torch.cuda.set_device(index)
            name = f"cuda:{index}"
        else:
            # Threads wait for each other at every operator: with one thread too many for the
            # cores, a busy neighbour makes small models several times slower.
            share = max(1, (_usable_cores() - 1) // settings.workers)
            torch.set_num_threads(min(torch.get_num_threads(), share))
        dtype = settings.dtype
        if dtype == "auto":
            dtype = "bfloat16" if name.startswith("cuda") else "float32"
        return cls(name, dtype)

    @property
    def is_cuda(self) -> bool:
        """True on an NVIDIA GPU (or what torch presents as one)."""
        return self.name.startswith("cuda")

    @property
    def torch_device(self) -> torch.device:
        """The device as torch wants it."""
        import torch

        return torch.device(self.name)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch wants it."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def model_name(self) -> str:
        """What kind of device it is: the GPU's product name, or `cpu`."""
        if not self.is_cuda:
            return "cpu"
        import torch

        return str(torch.cuda.get_device_name(self.name))

    def synchronize(self) -> None:
        """Wait until everything submitted so far is done. Raises what went wrong in it."""
        if self.is_cuda:
            import torch

            torch.cuda.synchronize(self.name)

    def release_memory(self) -> None:
        """Give cached, unused memory back, after the references to it are gone."""
        gc.collect()
        if self.is_cuda:
            import torch

            torch.cuda.empty_cache()

    def free_bytes(self) -> int:
        """Memory that models and generations may still take, on the device they are on."""
        if self.is_cuda:
            import torch

            return int(torch.cuda.mem_get_info(self.name)[0])
        from models.weights.host_memory import available_host_bytes

        return available_host_bytes()

    def memory_bytes(self) -> dict[str, int]:
        """Device memory by kind: allocated, reserved, peak, total. Empty on the CPU."""
        if not self.is_cuda:
            return {}
        import torch

        return {
            "allocated": torch.cuda.memory_allocated(self.name),
            "reserved": torch.cuda.memory_reserved(self.name),
            "peak": torch.cuda.max_memory_allocated(self.name),
            "total": torch.cuda.get_device_properties(self.name).total_memory,
        }


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_out_of_memory(error: BaseException) -> bool:
    """True when a smaller batch, or more free memory, might have avoided `error`."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _OUT_OF_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """True when the device context is broken for the rest of the process."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _LOST)
