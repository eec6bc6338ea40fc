"""The border between model code and whoever drives it: `Pipeline`, `Generation`, the requests.

A pipeline turns a request into a `Generation` (prepare), advances any number of compatible
generations by one denoise step each (step), and turns latents into media (preview, decode). The
driver decides which generations share a step; a generation is a value and holds everything needed
to go on with it, here or on another machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from config.model_spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class ImageRequest:
    """A fully resolved text-to-image request: every field set, every range already checked.

    `width` and `height` are pixels; `seed` seeds the first image, image i uses `seed + i`.
    `sampler` is one of the spec's sampler names.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    num_images: int
    seed: int
    sampler: str

    @property
    def num_pixels(self) -> int:
        """Pixels of everything asked for."""
        return self.num_images * self.width * self.height


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames [T, height, width, 3], uint8 RGB, shown at `fps` frames a second.

    As source, mask or control it may have any size and length; a picture is a clip of one frame.
    """

    frames: NDArray[np.uint8]
    fps: float


@dataclass(frozen=True)
class Outpaint:
    """How far the canvas reaches beyond the source, as fractions 0..1 of the source's sides."""

    left: float
    right: float
    top: float
    bottom: float


@dataclass(frozen=True, eq=False)
class VideoRequest:
    """A fully resolved request for one clip: every field set, every range already checked.

    `width` and `height` are pixels on the model's grid, `num_frames` is 4n + 1, `fps` the frame
    rate of the result. `conditioning_scale` has one entry or one for each VACE layer.

    What the clip is made from, in any combination the job layer lets through:
    `video` is a source whose parts are kept where `mask` is black and made anew where it is white
    (one frame: for the whole clip), and around which `outpaint` makes more; `control_video` guides
    every frame (depth, pose, scribble, flow, grey, layout), turned grey first where `control` is
    "grey", and of `video` only what is made anew; `first_clip` and `last_clip` are kept as
    beginning and end (one frame each: first and last frame); `reference_images`, one frame each,
    show what the clip is to contain.
    `frame_policy` says how a source of another length is fitted: "trim" takes its first frames at
    the clip's rate, "resample" spreads all of it over the clip.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    conditioning_scale: tuple[float, ...]
    seed: int
    sampler: str
    video: Clip | None = None
    mask: Clip | None = None
    outpaint: Outpaint | None = None
    control_video: Clip | None = None
    control: Literal["given", "grey"] = "given"
    first_clip: Clip | None = None
    last_clip: Clip | None = None
    reference_images: tuple[Clip, ...] = ()
    frame_policy: Literal["trim", "resample"] = "trim"

    @property
    def num_images(self) -> int:
        """A clip counts as one picture when batches are filled."""
        return 1

    @property
    def num_pixels(self) -> int:
        """Pixels of everything asked for."""
        return self.num_frames * self.width * self.height


Request = ImageRequest | VideoRequest


class Generation(ABC):
    """Everything needed to go on with one request: latents, sampler history, conditioning, step.

    Generations with equal `batch_key` may share a step, each at its own timestep. `latents` has
    shape [num_images, channels, height, width], or [1, channels, latent frames, height, width] for
    a clip, and dtype float32. `state_dict` holds all that a step reads and that cannot be rebuilt
    cheaply from the request; after `load_state_dict` on a freshly prepared generation of the same
    request the remaining steps are bit-identical to an unbroken run in batches of the same
    composition.
    """

    batch_key: Hashable
    latents: Tensor
    step_index: int
    num_steps: int

    @property
    def is_done(self) -> bool:
        """True when every denoise step has been taken and the latents can be decoded."""
        return self.step_index >= self.num_steps

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors it holds."""
        from models.tensor_tree import tensors_in

        return sum(tensor.nbytes for tensor in tensors_in(vars(self)))

    def to(self, device: torch.device | str) -> None:
        """Move every tensor it holds to `device`, in place; no bit changes.

        A generation steps only on its pipeline's device. Unchanged if anything raises.
        """
        from models.tensor_tree import moved

        vars(self).update(moved(vars(self), device))

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Tensors (safetensors-writable) from which `load_state_dict` continues."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`.

        Raises ValueError when it belongs to another request's shape; nothing has changed then.
        """


KeepGoing = Callable[[], None]
"""Called between two pieces of long work, often; raises `models.errors.Cancelled` to leave it."""


def to_the_end() -> None:
    """A `KeepGoing` that never leaves the work."""


class Pipeline(Protocol):
    """One resident model. Methods are called from one thread; none of them does I/O.

    `keep_going` is called between the pieces of what takes long: prompts, chunks and tiles of a
    clip, halves of guidance where they run one after the other. What it raises comes out of the
    method and leaves the pipeline and its generations as if the call had not been made.

    `residency` says how its largest network rests in memory: "packed" or "fp8" for quantised
    weights, else the name of the dtype, e.g. "bf16" or "float32".
    """

    spec: ModelSpec
    residency: str

    def prepare(self, request: Any, keep_going: KeepGoing = to_the_end) -> Generation:
        """Encode the prompts, draw the noise and compute all that stays constant over the steps.

        `request` is an `ImageRequest` or a `VideoRequest`, as the spec's task asks.
        """

    def step(self, batch: Sequence[Generation], keep_going: KeepGoing = to_the_end) -> None:
        """Advance every member by one denoise step, in place.

        All members share one `batch_key` and none is done. If it raises, no member has advanced.
        """

    def drop_batch(self) -> None:
        """Let go of what is kept on the device for the batch that stepped last.

        The next step makes it anew. To be called when a generation has been moved away or given up.
        """

    def preview(self, generation: Generation) -> list[Image]:
        """Small RGB pictures straight from the latents, cheap enough for every few steps.

        One for each image, or a few frames of a clip in their order.
        """

    def decode(
        self, generation: Generation, keep_going: KeepGoing = to_the_end
    ) -> list[Image] | Clip:
        """The finished RGB pictures, or the clip, of a generation that `is_done`."""
