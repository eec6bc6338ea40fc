"""From model specs to resident models: what could be loaded, and why the rest could not.

One damaged checkpoint must not take the sound ones down with it, so a failure to load becomes one
line that names file and tensor, kept for `/v1/models` and the log, and the worker goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from config.model_spec import ModelSpec
from models.loading import weights_of
from models.pipeline import Pipeline
from workers import metrics
from workers.device import Device
from workers.recipe import Recipes, checkpoint_digest

log = structlog.get_logger(__name__)


@dataclass
class Residents:
    """What a worker serves, by model id, and one line for each model that it cannot."""

    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    recipes: dict[str, Recipes] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def load(
        self,
        specs: Sequence[ModelSpec],
        device: Device,
        digests: Path,
        load: Callable[..., Pipeline],
    ) -> None:
        """Load every spec in turn; failures are logged and noted, never raised.

        `digests` is the file that remembers the digests of weight files.
        """
        for spec in specs:
            started = time.monotonic()
            try:
                pipeline = load(spec, device=device.torch_device, dtype=device.torch_dtype)
                device.synchronize()
                digest = checkpoint_digest(_folder_of(spec), weights_of(spec), digests)
            except Exception as error:
                message = _one_line(error, _folder_of(spec))
                self.errors[spec.id] = message
                log.error("model cannot be served", model=spec.id, reason=message)
                continue
            seconds = time.monotonic() - started
            self.recipes[spec.id] = Recipes(spec.id, digest, device, pipeline.residency)
            self.pipelines[spec.id] = pipeline
            metrics.MODEL_LOAD_SECONDS.labels(spec.id).observe(seconds)
            log.info(
                "model is resident",
                model=spec.id,
                residency=pipeline.residency,
                seconds=round(seconds, 2),
            )

    def residency(self) -> dict[str, str]:
        """How the weights of each served model rest in memory."""
        return {model: pipeline.residency for model, pipeline in self.pipelines.items()}


def _folder_of(spec: ModelSpec) -> Path:
    return spec.source.parent if spec.source.is_file() else spec.source


def _one_line(error: Exception, folder: Path) -> str:
    """The error without line breaks and without where on this machine the checkpoint lies."""
    text = " ".join(str(error).split()).replace(f"{folder}/", "") or "no message"
    return text if type(error).__module__ == "models.errors" else f"{type(error).__name__}: {text}"
