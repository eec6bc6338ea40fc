"""Which GPUs this machine offers, found without loading a tensor library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

NVIDIA_SMI_SECONDS = 10


def visible_gpus() -> list[str]:
    """Identifiers fit for CUDA_VISIBLE_DEVICES, one per GPU that this process may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [part.strip() for part in chosen.split(",") if part.strip() not in ("", "-1")]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        listing = subprocess.run(
            [program, "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        # A driver that cannot list its devices cannot run a worker on them either.
        return []
    return re.findall(r"^GPU \d+: .*\(UUID: (GPU-[0-9a-f-]+)\)", listing.stdout, re.MULTILINE)
