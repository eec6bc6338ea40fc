"""One way of loading a Wan-VACE GGUF file: seconds and memory, each in a process of its own.

`python -m bench.gguf_loading WAY FILE FOLDER` prints the figures of one way as JSON; this is what
`measure_apart` runs. `open` maps the file and makes a view of every tensor, `packed` and `unpacked`
are ours, `diffusers` is `from_single_file`, which is told the configuration by FOLDER. A tiny file
is loaded first in the same way, so that imports are neither timed nor counted.

Private memory is what belongs to the process and to no file: what two workers on one machine pay
twice. Pages of a mapped file are in the peak, since they are resident, but the kernel takes them
back when it needs to.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.precision import DTYPE
from bench.synthetic_gguf import TINY, write_diffusers_config, write_random_model
from models.wan.transformer_loading import load_transformer
from models.weights.gguf.file import GgufFile
from models.weights.gguf.file_type import FileType

ROOT = Path(__file__).parent.parent
_CPU = torch.device("cpu")


def load_ours(residency: str, path: Path) -> Any:
    """Our transformer, computing in DTYPE."""
    return load_transformer(path, device=_CPU, dtype=DTYPE, residency=residency)  # type: ignore[arg-type]


def load_diffusers(path: Path, config: Path) -> Any:
    """Diffusers' transformer from the same file, computing in DTYPE."""
    from diffusers import GGUFQuantizationConfig, WanVACETransformer3DModel

    return WanVACETransformer3DModel.from_single_file(
        str(path),
        config=str(config),
        quantization_config=GGUFQuantizationConfig(compute_dtype=DTYPE),
        dtype=DTYPE,
    )


def _open(path: Path) -> Any:
    with GgufFile.open(path) as file:
        return [file.raw(name) for name in file.tensors]


def _touch(views: list[torch.Tensor]) -> None:
    """Read a byte of every page."""
    for view in views:
        view[:: 4 << 10].max()


def private_bytes() -> int:
    """Memory of this process that no file backs."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(text.split("\nAnonymous:")[1].split()[0]) * 1024


def peak_bytes() -> int:
    """The most memory that was ever resident, pages of mapped files included."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


WAYS: dict[str, Callable[[Path, Path], Any]] = {
    "open": lambda path, config: _open(path),
    "packed": lambda path, config: load_ours("packed", path),
    "unpacked": lambda path, config: load_ours("bf16", path),
    "diffusers": load_diffusers,
}


def measure(way: str, path: Path, config: Path) -> dict[str, Any]:
    """Load once in this process; `private_mb` and `growth_of_file` are beyond what it had before.

    After `open`, every page of the file is read before the peak is taken.
    """
    load = WAYS[way]
    with tempfile.TemporaryDirectory() as name:
        tiny = Path(name) / "tiny.gguf"
        write_random_model(tiny, TINY, FileType.Q4_K_M)
        load(tiny, write_diffusers_config(Path(name), TINY))
    gc.collect()
    size = path.stat().st_size
    private_before, peak_before = private_bytes(), peak_bytes()
    started = time.perf_counter()
    loaded = load(path, config)
    figures: dict[str, Any] = {
        "way": way,
        "seconds": time.perf_counter() - started,
        "private_mb": (private_bytes() - private_before) / 1e6,
    }
    if way == "open":
        _touch(loaded)
    peak = peak_bytes()
    return figures | {
        "peak_mb": peak / 1e6,
        "peak_of_file": peak / size,
        "growth_of_file": (peak - peak_before) / size,
    }


def measure_apart(way: str, path: Path, config: Path) -> dict[str, Any]:
    """`measure` in a fresh interpreter. Raises CalledProcessError when that fails."""
    command = [sys.executable, "-m", "bench.gguf_loading", way, str(path), str(config)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    figures: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Print the figures of one way as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("file", type=Path)
    parser.add_argument("config", type=Path, help="folder with diffusers' config.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(arguments.way, arguments.file, arguments.config)))


if __name__ == "__main__":
    main()
