"""What a worker process of these tests runs: a real worker over fake pipelines.

A model whose id starts with `damaged` fails to load as a damaged checkpoint would; one whose id
starts with `clips` makes clips; one whose id starts with `large` takes `LARGE_BYTES` and, after the
first of them, `LOAD_SECONDS` to load; one whose id starts with `endless` is as large and never
loaded; `sana-demo` is itself. While the data directory holds a file `SLOW_DISK`, every file takes
`SLOW_DISK_SECONDS` longer to reach the disk.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from fake_pipeline import FakeClipPipeline, FakePipeline, fake_clip_spec, fake_spec

from config.model_spec import ModelSpec
from config.settings import Settings
from models import loading
from models.catalogue import discover
from models.errors import CheckpointError
from models.pipeline import Pipeline
from workers.process import run_worker

REAL = ("sana-demo",)
LARGE_BYTES = 1000
LOAD_SECONDS = 2.5
SLOW_DISK = "slow-disk"
SLOW_DISK_SECONDS = 0.4


def work(settings: Settings, step_seconds: float, models: Sequence[str]) -> None:
    loaded: list[str] = []
    _install_disk(settings.data_dir / SLOW_DISK)

    def load(spec: ModelSpec, *, device: torch.device, dtype: torch.dtype) -> Pipeline:
        if spec.id in REAL:
            return loading.load(spec, device=device, dtype=dtype)
        if spec.id.startswith("damaged"):
            raise CheckpointError(
                f"{spec.source}/vae/model.safetensors: tensor decoder.weight is cut off"
            )
        if spec.id.startswith("endless"):
            time.sleep(3600)
        if spec.id.startswith("large") and loaded:
            time.sleep(LOAD_SECONDS)
        loaded.append(spec.id)
        kind = FakeClipPipeline if spec.task == "video" else FakePipeline
        return kind(spec, seconds=lambda images: step_seconds)

    def weigh(spec: ModelSpec) -> int:
        return LARGE_BYTES if spec.id.startswith(("large", "endless")) else 0

    specs = [spec_of(model) for model in models]
    sys.exit(run_worker(settings, specs, load=load, weigh=weigh))


def spec_of(model: str) -> ModelSpec:
    if model in REAL:
        return discover([model])[0]
    return fake_clip_spec(model) if model.startswith("clips") else fake_spec(model)


def _install_disk(slow: Path) -> None:
    true_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        if slow.exists():
            time.sleep(SLOW_DISK_SECONDS)
        true_fsync(descriptor)

    os.fsync = fsync
