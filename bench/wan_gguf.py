"""Wan-VACE 1.3B from GGUF: loading and stepping, against diffusers on the same file.

The files are of full size with random blocks, Q8_0 and Q4_K_M. Each way of loading runs in a
process of its own, with the file in the page cache. Then one process holds our model packed from
both files, ours unpacked and diffusers' from both, and they take turns at one evaluation without
guidance of a clip of 9 frames at 256 x 256, which is 768 tokens. Once unpacked, the type of the
file makes no difference to a step, so that one stands for both. All compute in bfloat16, or in
float32 on a CPU that has no bfloat16.

stable-diffusion.cpp steps the Q8_0 file in the same rounds where `--sdcpp`, or else the variable
SDCPP_STEP, names the driver that `bench/sdcpp_step.cpp` tells how to build. Goals: all views of a
2 GB file in at most 0.1 s with at most 50 MB of private memory, a peak of at most 1.15 times the
file, a step of at most 0.45 times that of stable-diffusion.cpp.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bench.gguf_loading import WAYS, load_diffusers, load_ours, measure_apart
from bench.interleaved import compare, time_interleaved
from bench.precision import DTYPE, DTYPE_NAME
from bench.run import table
from bench.sdcpp import SdcppStep
from bench.synthetic_gguf import VACE_1_3B, write_diffusers_config, write_random_model
from bench.wan_steps import Clip, Sizes, Step, diffusers_step, our_step, relative_difference
from models.wan.transformer_config import WanVaceConfig
from models.weights.gguf.file_type import FileType

FILE_TYPES = (FileType.Q8_0, FileType.Q4_K_M)
LATENTS = (3, 32, 32)
WARM_UP = (1, 4, 4)
SDCPP = "stable-diffusion.cpp"
PEERS = ("diffusers", SDCPP)


def write_files(folder: Path, config: WanVaceConfig) -> tuple[dict[str, Path], list[Any]]:
    """The files by the name of their type, and a row of figures for each."""
    paths: dict[str, Path] = {}
    rows = []
    for file_type in FILE_TYPES:
        path = paths[file_type.name] = folder / f"{file_type.name}.gguf"
        started = time.perf_counter()
        write_random_model(path, config, file_type)
        seconds = time.perf_counter() - started
        rows.append(
            {"file": file_type.name, "gb": path.stat().st_size / 1e9, "written_seconds": seconds}
        )
    return paths, rows


def our_and_diffusers_steps(
    paths: Mapping[str, Path], config: WanVaceConfig, config_folder: Path, clip: Clip
) -> dict[str, Step]:
    """Every variant by name, warmed up on a tiny clip, which reads all weights once."""
    first = next(iter(paths))
    ours = {"unpacked": load_ours("bf16", paths[first])}
    theirs = {}
    for name, path in paths.items():
        ours[f"{name} packed"] = load_ours("packed", path)
        theirs[f"{name} diffusers"] = load_diffusers(path, config_folder)
    tiny = Clip(config, WARM_UP)
    for model in ours.values():
        our_step(model, tiny)()
    for model in theirs.values():
        diffusers_step(model, tiny, DTYPE)()
    return {name: our_step(model, clip) for name, model in ours.items()} | {
        name: diffusers_step(model, clip, DTYPE) for name, model in theirs.items()
    }


class _Timed:
    """A step that keeps its last result and the processor time of each call."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.output = torch.empty(0)
        self.cpu_seconds: list[float] = []

    def __call__(self) -> None:
        started = self._clock()
        self.output = self.step()
        self.cpu_seconds.append(self._clock() - started)

    def _clock(self) -> float:
        return self.step.cpu_seconds if isinstance(self.step, SdcppStep) else time.process_time()


def step_figures(steps: Mapping[str, Step], rounds: int) -> dict[str, Any]:
    """Times in turns. A comparison with a peer has the ratio of times inside the rounds, and how
    far the results are apart: all compute in DTYPE or, stable-diffusion.cpp, in 8-bit integers.

    Rounds are few, so ratios of processor time stand beside those of seconds: what others do on the
    machine disturbs them less.
    """
    calls = {name: _Timed(step) for name, step in steps.items()}
    seconds = time_interleaved(calls, rounds=rounds, warmups=0)
    cpu_seconds = {name: call.cpu_seconds for name, call in calls.items()}
    comparisons = []
    for peer in steps:
        file, _, program = peer.partition(" ")
        if program not in PEERS:
            continue
        # The unpacked model is that of the first file: only there do the weights agree.
        for name in (f"{file} packed", *(["unpacked"] if file == FILE_TYPES[0].name else [])):
            comparisons.append(
                {
                    "ours": name,
                    "peer": peer,
                    "ratio": _ratios(seconds, peer)[name],
                    "cpu_ratio": _ratios(cpu_seconds, peer)[name],
                    "difference": relative_difference(calls[name].output, calls[peer].output),
                }
            )
    cpu_ratios = _ratios(cpu_seconds, "unpacked")
    return {
        "steps": [
            row | {"cpu_ratio": cpu_ratios[row["variant"]]} for row in compare(seconds, "unpacked")
        ],
        "against_peers": comparisons,
    }


def _ratios(seconds: Mapping[str, list[float]], baseline: str) -> dict[str, float]:
    return {row["variant"]: row["ratio"] for row in compare(seconds, baseline)}


@torch.inference_mode()
def run(
    rounds: int = 2,
    threads: int = 1,
    *,
    config: WanVaceConfig = VACE_1_3B,
    latents: Sizes = LATENTS,
    sdcpp: Path | None = None,
) -> dict[str, Any]:
    """Figures of both files; the same thread count for all sides."""
    torch.set_num_threads(threads)
    if sdcpp is None and (named := os.environ.get("SDCPP_STEP")):
        sdcpp = Path(named)
    clip = Clip(config, latents)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config_folder = write_diffusers_config(folder / "config", config)
        paths, files = write_files(folder, config)
        loading = [
            {"file": name} | measure_apart(way, path, config_folder)
            for name, path in paths.items()
            for way in WAYS
        ]
        steps = our_and_diffusers_steps(paths, config, config_folder, clip)
        if sdcpp:
            name, path = next(iter(paths.items()))
            step = stack.enter_context(SdcppStep(sdcpp, path, clip, threads))
            loading.append({"file": name, "way": SDCPP, "seconds": step.load_seconds})
            steps[f"{name} {SDCPP}"] = step
        return {
            "threads": torch.get_num_threads(),
            "rounds": rounds,
            "dtype": DTYPE_NAME,
            "tokens": clip.tokens,
            "files": files,
            "loading": loading,
            **step_figures(steps, rounds),
        }


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sdcpp", type=Path, help="the driver built from bench/sdcpp_step.cpp")
    arguments = parser.parse_args()
    print(table(run(arguments.rounds, arguments.threads, sdcpp=arguments.sdcpp)))


if __name__ == "__main__":
    main()
