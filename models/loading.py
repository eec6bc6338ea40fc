"""From a `ModelSpec` to a resident `Pipeline`: the one place that knows which family loads how.

Importing this module costs nothing; torch comes with the first `load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from config.model_spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from models.pipeline import Pipeline


def load(spec: ModelSpec, *, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """The pipeline of `spec` on `device`, its transformer in `dtype`, ready for requests.

    Raises CheckpointError naming component, file and tensor.
    """
    from models.sana.pipeline import SanaPipeline

    return SanaPipeline.load(spec, device=device, dtype=dtype)
