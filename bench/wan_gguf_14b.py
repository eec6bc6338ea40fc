"""Wan-VACE 14B as Q4_K_M: does a file of 11.6 GB load packed and take a step on this machine?

The file is of full size with random blocks. Writing, loading and one evaluation without guidance of
a clip of one frame at 256 x 256, which is 256 tokens, each happen in a process of their own. In the
peak, pages of the mapped file count as long as the kernel leaves them resident; private memory is
what no file backs. There is one step only, so its processor time stands beside the seconds: where
others use the machine too, that is the figure to go by.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.gguf_loading import ROOT, load_ours, peak_bytes, private_bytes
from bench.precision import DTYPE_NAME
from bench.run import table
from bench.synthetic_gguf import VACE_14B, planned_tensors, write_random_model
from bench.wan_steps import Clip, Sizes, our_step
from models.wan.transformer_config import WanVaceConfig
from models.weights.gguf.file_type import FileType

FILE_TYPE = FileType.Q4_K_M
LATENTS = (1, 32, 32)


@torch.inference_mode()
def load_and_step(path: Path, latents: Sizes = LATENTS) -> dict[str, Any]:
    """Load the file packed in this process and take one step; a non-finite result is an error."""
    before = private_bytes()
    started = time.perf_counter()
    model = load_ours("packed", path)
    figures: dict[str, Any] = {"load_seconds": time.perf_counter() - started}
    figures["load_private_mb"] = (private_bytes() - before) / 1e6
    figures["load_peak_mb"] = peak_bytes() / 1e6
    clip = Clip(model.config, latents)
    step = our_step(model, clip)
    started, cpu_started = time.perf_counter(), time.process_time()
    velocity = step()
    figures["step_seconds"] = time.perf_counter() - started
    figures["step_cpu_seconds"] = time.process_time() - cpu_started
    figures["tokens"] = clip.tokens
    figures["dtype"] = DTYPE_NAME
    if not velocity.isfinite().all():
        raise ArithmeticError("the step left numbers that are not finite")
    return figures | {
        "private_mb": (private_bytes() - before) / 1e6,
        "peak_mb": peak_bytes() / 1e6,
        "peak_of_file": peak_bytes() / path.stat().st_size,
    }


def run(
    threads: int = 1,
    *,
    config: WanVaceConfig = VACE_14B,
    latents: Sizes = LATENTS,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Figures, or `skipped` with the reason where the disk has no room. `folder` None: temporary
    files go where the system puts them.
    """
    needed = sum(tensor.nbytes for tensor in planned_tensors(config, FILE_TYPE))
    free = shutil.disk_usage(folder or tempfile.gettempdir()).free
    if free < 1.1 * needed:
        return {"skipped": f"takes {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free"}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "vace.gguf"
        started = time.perf_counter()
        write_random_model(path, config, FILE_TYPE)
        seconds = time.perf_counter() - started
        sizes = ",".join(map(str, latents))
        command = [sys.executable, "-m", "bench.wan_gguf_14b", "--step", str(path)]
        command += ["--latents", sizes, "--threads", str(threads)]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        return {
            "threads": threads,
            "tensors": len(planned_tensors(config, FILE_TYPE)),
            "file_gb": path.stat().st_size / 1e9,
            "written_seconds": seconds,
            **json.loads(result.stdout.splitlines()[-1]),
        }


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the file goes while this runs")
    parser.add_argument("--step", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--latents", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        torch.set_num_threads(arguments.threads)
        frames, rows, columns = map(int, arguments.latents.split(","))
        print(json.dumps(load_and_step(arguments.step, (frames, rows, columns))))
    else:
        print(table(run(arguments.threads, folder=arguments.folder)))


if __name__ == "__main__":
    main()
