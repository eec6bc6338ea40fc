"""From a `ModelSpec` to a resident `Pipeline`: the one place that knows which family loads how.

Importing this module costs nothing; torch comes with the first `load`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from config.model_spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from models.pipeline import Pipeline


def load(spec: ModelSpec, *, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """The pipeline of `spec` on `device`, its transformer in `dtype`, ready for requests.

    Raises CheckpointError naming component, file and tensor.
    """
    if spec.family == "wan-vace":
        from models.wan.pipeline import WanVacePipeline

        return WanVacePipeline.load(spec, device=device, dtype=dtype)
    if spec.family == "fake":
        from models.fake.pipeline import FakePipeline

        return FakePipeline(spec, device)
    from models.sana.pipeline import SanaPipeline

    return SanaPipeline.load(spec, device=device, dtype=dtype)


def weights_of(spec: ModelSpec) -> tuple[Path, ...]:
    """The files and folders that `load` reads the weights of `spec` from.

    Raises CheckpointError when one is missing.
    """
    if spec.family == "wan-vace":
        from models.wan.checkpoint import WanVaceCheckpoint

        return WanVaceCheckpoint.read(spec.source).weights
    return (spec.source,)
