"""Which device and dtype settings mean, and what errors say about the device."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from config.settings import Settings
from workers.device import Device, is_device_lost, is_out_of_memory

ON_CUDA = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _threads_are_put_back() -> object:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_cpu_computes_in_float32_unless_told_otherwise() -> None:
    assert Device.resolve(Settings(device="cpu")) == Device("cpu", "float32")
    assert Device.resolve(Settings(device="cpu", dtype="bfloat16")).torch_dtype is torch.bfloat16


@pytest.mark.skipif(ON_CUDA, reason="needs a machine without CUDA")
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    assert Device.resolve(Settings()).torch_device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not ON_CUDA, reason="needs CUDA")
def test_auto_is_bfloat16_on_the_gpu() -> None:
    device = Device.resolve(Settings())
    assert (device.name, device.dtype) == ("cuda:0", "bfloat16")
    assert device.memory_bytes()["total"] > 0


def test_a_gpu_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="device cuda:99 was asked for"):
        Device.resolve(Settings(device="cuda:99"))


def test_workers_share_the_cores_and_leave_one() -> None:
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    Device.resolve(Settings(device="cpu", workers=1))
    assert torch.get_num_threads() == max(1, cores - 1)
    Device.resolve(Settings(device="cpu", workers=64))
    assert torch.get_num_threads() == max(1, (cores - 1) // 64)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_is_recognised_and_not_fatal(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_device_lost(error)


def test_a_real_allocation_failure_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)


def test_a_sticky_cuda_error_is_fatal() -> None:
    assert is_device_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_device_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_device_lost(ValueError("CUDA error"))


def test_importing_the_worker_loads_no_tensor_library_and_no_text_encoder() -> None:
    script = (
        "import sys, workers.process; "
        "print({'torch', 'transformers', 'diffusers', 'fastapi'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.strip() == b"set()"
