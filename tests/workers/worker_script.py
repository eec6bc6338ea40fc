"""What a worker process of these tests runs: a real worker over fake pipelines.

A model whose id starts with `damaged` fails to load as a damaged checkpoint would.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fake_pipeline import FakePipeline, fake_spec

from config.model_spec import ModelSpec
from config.settings import Settings
from models.errors import CheckpointError
from workers.process import run_worker


def work(settings: Settings, step_seconds: float, models: Sequence[str]) -> None:
    def load(spec: ModelSpec, *, device: object, dtype: object) -> FakePipeline:
        if spec.id.startswith("damaged"):
            raise CheckpointError(
                f"{spec.source}/vae/model.safetensors: tensor decoder.weight is cut off"
            )
        return FakePipeline(spec, seconds=lambda images: step_seconds)

    sys.exit(run_worker(settings, [fake_spec(model) for model in models], load=load))
