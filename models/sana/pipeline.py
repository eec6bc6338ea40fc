"""Sana text-to-image: a checkpoint folder becomes a `Pipeline` that works in single steps.

A request becomes text keys and values, embedded timesteps and noise (`prepare`); each `step` runs
the transformer once over all members of a batch, mixes the guided and unguided halves and lets
every member's sampler advance; `decode` turns latents into pictures. Text encoder, transformer,
autoencoder and samplers know nothing of each other: this module is where they meet.

Follows Xie et al., SANA, arXiv:2410.10629, with classifier-free guidance as in Ho & Salimans,
arXiv:2207.12598.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from config.model_spec import ModelSpec
from models.errors import CheckpointError
from models.latent_preview import LatentPreview
from models.pictures import to_images
from models.pipeline import Generation, ImageRequest, KeepGoing, to_the_end
from models.samplers import SAMPLERS
from models.samplers.batch_check import checked_batch
from models.samplers.sampled_generation import take_step
from models.sana.autoencoder_dc import AutoencoderDC
from models.sana.batch import BatchConditioning, serials_of
from models.sana.checkpoint import PIXELS_PER_LATENT, SanaCheckpoint
from models.sana.generation import SanaGeneration
from models.sana.text_encoder import SanaTextEncoder
from models.sana.transformer import SanaTransformer
from models.weights.safetensors_folder import load_module
from models.weights.skeleton import skeleton

# What is decoded at once: enough to fill a device with small pictures, while the activations of a
# large one (about 1 GB per megapixel in bfloat16) are not multiplied by the number of images.
_PIXELS_PER_DECODE = 1024 * 1024


class SanaPipeline:
    """A resident Sana checkpoint; see `models.pipeline.Pipeline` for what each method promises.

    `text_encoder` is None when the pipeline was loaded without one; then only `begin` can start a
    generation.
    """

    def __init__(
        self,
        spec: ModelSpec,
        checkpoint: SanaCheckpoint,
        *,
        transformer: SanaTransformer,
        autoencoder: AutoencoderDC,
        text_encoder: SanaTextEncoder | None,
        preview: LatentPreview | None,
        device: torch.device,
    ) -> None:
        self.spec = spec
        self.transformer = transformer
        self.autoencoder = autoencoder
        self.text_encoder = text_encoder
        self.device = device
        dtype = next(transformer.parameters()).dtype
        self.residency = "bf16" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch.")
        self._config = transformer.config
        self._shift = checkpoint.shift
        self._preview = preview
        self._last_batch: BatchConditioning | None = None

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        text_encoder: bool = True,
    ) -> SanaPipeline:
        """Load every component of `spec.source` onto `device`.

        The transformer runs in `dtype`; text encoder and autoencoder too, except that they take
        bfloat16 for float16, in which their activations overflow. The encoder half of the
        autoencoder is checked, not loaded. Raises CheckpointError naming the component's file and
        the tensor, UnsupportedCheckpoint when the folder holds another kind of model.
        """
        device = torch.device(device)
        checkpoint = SanaCheckpoint.read(spec.source)
        wide = torch.bfloat16 if dtype == torch.float16 else dtype
        with skeleton():
            transformer = SanaTransformer(checkpoint.transformer)
            autoencoder = AutoencoderDC(checkpoint.autoencoder)
        variant = spec.variant
        load_module(
            transformer, spec.source / "transformer", device=device, dtype=dtype, variant=variant
        )
        load_module(
            autoencoder,
            spec.source / "vae",
            device=device,
            dtype=wide,
            variant=variant,
            left_out=("encoder.",),
        )
        autoencoder.encoder = None
        encoder = _checked_text_encoder(spec, checkpoint, device, wide) if text_encoder else None
        preview = LatentPreview.load(spec.source, checkpoint.transformer.in_channels, device)
        return cls(
            spec,
            checkpoint,
            transformer=transformer,
            autoencoder=autoencoder,
            text_encoder=encoder,
            preview=preview,
            device=device,
        )

    def prepare(self, request: ImageRequest, keep_going: KeepGoing = to_the_end) -> SanaGeneration:
        """Encode the prompts and `begin`.

        Raises ValueError naming field and range for a request outside the spec's limits.
        """
        if self.text_encoder is None:
            raise RuntimeError(f"{self.spec.id} was loaded without its text encoder")
        self._check(request)
        positive = self.text_encoder.encode(request.prompt)
        negative = None
        keep_going()
        if self.doubles_batch(request):
            negative = self.text_encoder.encode(request.negative_prompt, "negative")
        return self.begin(request, positive, negative)

    @torch.inference_mode()
    def begin(
        self, request: ImageRequest, positive: Tensor, negative: Tensor | None
    ) -> SanaGeneration:
        """The generation of `request` with text embeddings already made, before its first step.

        Embeddings are [tokens, caption_channels]; `negative` is given if and only if
        `doubles_batch(request)`. Noise is drawn on the CPU in float32, from a generator of its own
        for each image, so that a seed means the same picture on every device.
        """
        if (negative is not None) != self.doubles_batch(request):
            raise ValueError("negative: needed if and only if guidance doubles the batch")
        texts = [positive] if negative is None else [negative, positive]
        lengths = torch.tensor([len(text) for text in texts], device=self.device)
        embeds = pad_sequence([text.to(self.device) for text in texts], batch_first=True)
        mask = torch.arange(embeds.shape[1], device=self.device) < lengths[:, None]

        plan = SAMPLERS[request.sampler](request.num_inference_steps, self._shift)
        timesteps = torch.tensor(plan.timesteps, dtype=torch.float32, device=self.device)
        guidance = None
        if self._config.guidance_embeds:
            scaled = request.guidance_scale * self._config.guidance_embeds_scale
            guidance = torch.full_like(timesteps, scaled)

        time = self.transformer.embed_timesteps(timesteps * self._config.timestep_scale, guidance)
        latents = self._noise(request)
        return SanaGeneration(
            request,
            batch_key=(self.spec.id, tuple(latents.shape[1:]), negative is not None),
            latents=latents,
            plan=plan,
            text=self.transformer.encode_text(embeds, mask),
            time=time,
        )

    def doubles_batch(self, request: ImageRequest) -> bool:
        """Whether each image is denoised twice a step, without and with its prompt.

        Not at a guidance scale of 1, where the half without has no weight, nor with a transformer
        that takes the guidance scale as an input.
        """
        return request.guidance_scale > 1.0 and not self._config.guidance_embeds

    @torch.inference_mode()
    def step(self, batch: Sequence[Generation], keep_going: KeepGoing = to_the_end) -> None:
        """Advance every member by one denoise step, each at its own timestep and sampler.

        Raises ValueError, before any work, for an empty batch, a member given twice, one that is
        done and members whose `batch_key` differs. No member changes if anything raises.
        """
        members = _checked_batch(batch)
        latents = _cat([member.latents for member in members])
        conditioning = self._conditioning(members)
        scale = conditioning.guidance_scale

        velocity = self.transformer(
            latents if scale is None else torch.cat([latents, latents]),
            conditioning.time([member.step_index for member in members]),
            conditioning.text,
        )
        if scale is not None:
            unguided, guided = velocity.chunk(2)
            velocity = unguided + scale * (guided - unguided)
        take_step(members, latents, velocity)

    def drop_batch(self) -> None:
        """Let go of the joined conditioning of the last batch."""
        self._last_batch = None

    @torch.inference_mode()
    def preview(self, generation: Generation) -> list[Image.Image]:
        """What the pictures will look like, from the latest estimate of the finished latents.

        Empty before the first step and for a checkpoint that brings no preview map.
        """
        if self._preview is None or generation.step_index == 0:
            return []
        return self._preview.images(_own(generation).previous_denoised)

    @torch.inference_mode()
    def decode(
        self, generation: Generation, keep_going: KeepGoing = to_the_end
    ) -> list[Image.Image]:
        """The finished pictures, at the requested size.

        Raises ValueError before the last step, and ArithmeticError for pictures that are not
        finite: weights are damaged, or overflow the precision they run in.
        """
        if not generation.is_done:
            raise ValueError(
                f"generation is at step {generation.step_index} of {generation.num_steps}"
            )
        if self._last_batch is not None and _own(generation).serial in self._last_batch.serials:
            self._last_batch = None
        dtype = next(self.autoencoder.parameters()).dtype
        latents = (generation.latents / self.autoencoder.config.scaling_factor).to(dtype)
        pixels = latents.shape[-2] * latents.shape[-1] * PIXELS_PER_LATENT**2
        at_once = max(1, _PIXELS_PER_DECODE // pixels)
        images: list[Image.Image] = []
        for part in latents.split(at_once):
            keep_going()
            pictures = self.autoencoder.decode(part)
            if not pictures.isfinite().all():
                raise ArithmeticError("the pictures hold values that are not finite numbers")
            images.extend(to_images(pictures))
        return images

    def _conditioning(self, members: list[SanaGeneration]) -> BatchConditioning:
        # Kept for one batch only: text keys and values are the largest tensors of a request.
        if self._last_batch is None or self._last_batch.serials != serials_of(members):
            self._last_batch = None
            self._last_batch = BatchConditioning(members)
        return self._last_batch

    def _noise(self, request: ImageRequest) -> Tensor:
        shape = (
            self._config.in_channels,
            request.height // PIXELS_PER_LATENT,
            request.width // PIXELS_PER_LATENT,
        )
        images = [
            torch.randn(shape, generator=torch.Generator().manual_seed(request.seed + index))
            for index in range(request.num_images)
        ]
        return torch.stack(images).to(self.device)

    def _check(self, request: ImageRequest) -> None:
        for field in ("width", "height", "num_inference_steps", "guidance_scale", "num_images"):
            allowed = getattr(self.spec, field)
            value = getattr(request, field)
            multiple_of = getattr(allowed, "multiple_of", 1)
            if not allowed.minimum <= value <= allowed.maximum or (
                multiple_of > 1 and value % multiple_of
            ):
                steps = f" in steps of {multiple_of}" if multiple_of > 1 else ""
                raise ValueError(
                    f"{field} is {value}, allowed: {allowed.minimum}..{allowed.maximum}{steps}"
                )
        if request.sampler not in self.spec.samplers:
            raise ValueError(
                f"sampler is {request.sampler!r}, allowed: {', '.join(self.spec.samplers)}"
            )


def _checked_text_encoder(
    spec: ModelSpec, checkpoint: SanaCheckpoint, device: torch.device, dtype: torch.dtype
) -> SanaTextEncoder:
    encoder = SanaTextEncoder.load(spec.source, device=device, dtype=dtype, variant=spec.variant)
    wanted = checkpoint.transformer.caption_channels
    if encoder.hidden_size != wanted:
        raise CheckpointError(
            f"{spec.source / 'text_encoder' / 'config.json'}: hidden_size is "
            f"{encoder.hidden_size}, but the transformer's caption_channels is {wanted}"
        )
    return encoder


def _checked_batch(batch: Sequence[Generation]) -> list[SanaGeneration]:
    return checked_batch([_own(generation) for generation in batch])


def _own(generation: Generation) -> SanaGeneration:
    if not isinstance(generation, SanaGeneration):
        raise TypeError(f"{type(generation).__name__} is not a generation of a Sana pipeline")
    return generation


def _cat(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
