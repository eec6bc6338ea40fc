"""One Sana request between two denoise steps, as a value.

`SanaPipeline.begin` makes it, `SanaPipeline.step` moves it on. What changes from step to step is
the sampler's part, and that is what a checkpoint holds; the rest follows from the request and is
computed once.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable

from torch import Tensor

from models.pipeline import ImageRequest
from models.samplers import SamplerPlan
from models.samplers.sampled_generation import SampledGeneration
from models.sana.conditioning import TextConditioning
from models.time_modulation import TimeModulation

_serials = itertools.count()


class SanaGeneration(SampledGeneration):
    """Latents, sampler history and conditioning of one request.

    `latents` and the sampler's history are float32 [num_images, channels, height / 32, width / 32].
    `text` holds the rows negative, positive when guidance doubles the batch, else positive alone;
    `time` one row per step. `serial` tells generations of this process apart and is never given
    twice.
    """

    def __init__(
        self,
        request: ImageRequest,
        *,
        batch_key: Hashable,
        latents: Tensor,
        plan: SamplerPlan,
        text: TextConditioning,
        time: TimeModulation,
    ) -> None:
        super().__init__(plan, latents)
        self.request = request
        self.batch_key = batch_key
        self.text = text
        self.time = time
        self.serial = next(_serials)

    @property
    def is_guided(self) -> bool:
        """True when every image takes two rows of a batch: without and with the prompt."""
        return len(self.text.lengths) == 2
