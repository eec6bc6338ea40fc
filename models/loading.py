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


def weight_bytes(spec: ModelSpec) -> int:
    """Bytes of the weight files of `spec`: about what it takes in memory, before it is loaded.

    Too much for a folder with several variants, too little where 16-bit files become float32.
    Raises CheckpointError when a part is missing.
    """
    parts = [path for part in weights_of(spec) for path in (part, *part.rglob("*"))]
    return sum(path.stat().st_size for path in parts if path.suffix in (".safetensors", ".gguf"))


def weights_of(spec: ModelSpec) -> tuple[Path, ...]:
    """The files and folders that `load` reads the weights of `spec` from.

    Raises CheckpointError when one is missing.
    """
    if spec.family == "wan-vace":
        from models.wan.checkpoint import WanVaceCheckpoint

        return WanVaceCheckpoint.read(spec.source).weights
    return (spec.source,)
