"""Wan-VACE: a checkpoint becomes a `Pipeline` that makes clips in single steps.

A request's media become one canvas and its VACE context, its prompts text keys and values
(`prepare`); each `step` runs the transformer over all members of a batch, mixes the guided and
unguided halves and lets every member's sampler advance; `decode` turns latents into frames. All
VACE tasks take this one way: they differ in what lies on the canvas.

Follows Jiang et al., VACE, arXiv:2503.07598, on Wan 2.1, arXiv:2503.20314, with classifier-free
guidance as in Ho & Salimans, arXiv:2207.12598.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from config.model_spec import ModelSpec
from models.errors import CheckpointError
from models.latent_preview import LatentPreview
from models.pictures import to_frames
from models.pipeline import Clip, Generation, KeepGoing, VideoRequest, to_the_end
from models.samplers import WAN_SAMPLERS
from models.samplers.sampled_generation import take_step
from models.wan.autoencoder import WanAutoencoder
from models.wan.autoencoder_loading import load_autoencoder
from models.wan.canvas import paint
from models.wan.checkpoint import WanVaceCheckpoint
from models.wan.clip_coding import decode_clip, encode_clip
from models.wan.generation import (
    BatchConditioning,
    WanVaceGeneration,
    checked_batch,
    own,
    serials_of,
)
from models.wan.latent_shape import LATENT_CHANNELS, PIXELS_PER_LATENT, latent_frames
from models.wan.placement import plan_placement, resting_form
from models.wan.preview_fit import fit_preview
from models.wan.request_check import check_request
from models.wan.step_memory import TOKENS_TOGETHER, check_room, clip_tokens, step_bytes
from models.wan.text_encoder import WanTextEncoder
from models.wan.transformer import TimeModulation, WanVaceTransformer
from models.wan.transformer_loading import load_transformer
from models.wan.vace_context import ContextBuilder
from models.weights.host_memory import available_host_bytes
from models.weights.offload import offload

_PREVIEW_FRAMES = 4


class WanVacePipeline:
    """A resident Wan-VACE checkpoint; see `models.pipeline.Pipeline` for what each method promises.

    `residency` is how the transformer's large weights rest, `placement` one line that says why.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        transformer: WanVaceTransformer,
        autoencoder: WanAutoencoder,
        text_encoder: WanTextEncoder,
        preview: LatentPreview | None,
        device: torch.device,
        residency: str,
        placement: str = "",
    ) -> None:
        self.spec = spec
        self.transformer = transformer
        self.autoencoder = autoencoder
        self.text_encoder = text_encoder
        self.device = device
        self.residency = residency
        self.placement = placement
        self._preview = preview
        self._contexts = ContextBuilder(self._encode)
        self._last_batch: BatchConditioning | None = None

    @classmethod
    def load(
        cls, spec: ModelSpec, *, device: torch.device | str, dtype: torch.dtype
    ) -> WanVacePipeline:
        """Load every component of `spec.source` onto `device`.

        Activations of the transformer are `dtype`; the text encoder is bfloat16 for float16, in
        which it overflows, and the autoencoder always float32, as in the official code. Raises
        CheckpointError naming the component's file and the tensor, UnsupportedCheckpoint when the
        folder holds another kind of model.
        """
        device = torch.device(device)
        checkpoint = WanVaceCheckpoint.read(spec.source)
        plan = plan_placement(spec, checkpoint, device, dtype)
        transformer = load_transformer(
            checkpoint.transformer,
            device=torch.device("cpu") if plan.offload_layers else device,
            dtype=dtype,
            residency=plan.mode,
            config=checkpoint.config,
            variant=spec.variant,
        )
        if plan.offload_layers:
            _offload(transformer, device, plan.offload_layers)
        text_encoder = WanTextEncoder.load(
            checkpoint.text_encoder,
            checkpoint.tokenizer,
            device=device,
            dtype=torch.bfloat16 if dtype == torch.float16 else dtype,
            max_tokens=checkpoint.config.text_len,
            variant=spec.variant,
        )
        if text_encoder.hidden_size != checkpoint.config.text_dim:
            raise CheckpointError(
                f"{checkpoint.text_encoder}: states have {text_encoder.hidden_size} channels, but "
                f"the transformer takes {checkpoint.config.text_dim}"
            )
        autoencoder = load_autoencoder(checkpoint.autoencoder, device=device, variant=spec.variant)
        return cls(
            spec,
            transformer=transformer,
            autoencoder=autoencoder,
            text_encoder=text_encoder,
            preview=LatentPreview.load(checkpoint.folder, LATENT_CHANNELS, device)
            or fit_preview(autoencoder),
            device=device,
            residency=resting_form(checkpoint, plan.mode, dtype),
            placement=plan.reason,
        )

    @torch.inference_mode()
    def prepare(
        self, request: VideoRequest, keep_going: KeepGoing = to_the_end
    ) -> WanVaceGeneration:
        """Encode prompts and media, draw the noise, compute what stays constant over the steps.

        Noise is drawn on the CPU in float32, so that a seed means the same clip on every device.
        Raises ValueError naming the field for a request outside the spec's limits, MemoryError
        where the host has not got what a step of the clip takes.
        """
        check_request(request, self.spec)
        tokens = clip_tokens(
            self.transformer.config,
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
            references=len(request.reference_images),
        )
        self._check_room(tokens, 1, is_guided=request.guidance_scale > 1.0)
        encode = partial(self._encode, keep_going=keep_going)
        context = self._contexts.build(paint(request), encode)
        prompts = [self.text_encoder.encode(request.prompt)]
        keep_going()
        if request.guidance_scale > 1.0:
            prompts.insert(0, self.text_encoder.encode(request.negative_prompt))
        plan = WAN_SAMPLERS[request.sampler](request.num_inference_steps, request.flow_shift)
        timesteps = torch.tensor(plan.timesteps, dtype=torch.float32, device=self.device)
        latents = self._noise(request)
        count = len(self.transformer.vace_blocks)
        scales = torch.tensor(request.conditioning_scale, dtype=torch.float32, device=self.device)
        return WanVaceGeneration(
            request,
            batch_key=(self.spec.id, tuple(latents.shape[1:]), len(prompts)),
            latents=latents,
            plan=plan,
            text=self.transformer.encode_text(prompts),
            time=self.transformer.embed_timesteps(timesteps),
            context=self.transformer.encode_context(context),
            scales=scales.expand(count)[None],
        )

    @torch.inference_mode()
    def step(self, batch: Sequence[Generation], keep_going: KeepGoing = to_the_end) -> None:
        """Advance every member by one denoise step, each at its own timestep and sampler.

        Where the halves of guidance run one after the other, `keep_going` is called in between.
        Raises ValueError, before any work, for members that cannot share a step. No member changes
        if anything raises, as MemoryError does where the host has not got the memory for so many.
        """
        members = checked_batch(batch)
        if len(members) > 1:
            tokens = members[0].context.shape[1]
            self._check_room(tokens, len(members), is_guided=members[0].is_guided)
        latents = torch.cat([member.latents for member in members])
        conditioning = self._conditioning(members)
        time = conditioning.time([member.step_index for member in members])
        take_step(members, latents, self._velocity(latents, time, conditioning, keep_going))

    def drop_batch(self) -> None:
        """Let go of the joined conditioning of the last batch."""
        self._last_batch = None

    @torch.inference_mode()
    def preview(self, generation: Generation) -> list[Image.Image]:
        """A few frames of the clip from the latest estimate of its latents, in their order.

        Empty before the first step, and where no preview map could be fitted.
        """
        member = own(generation)
        if self._preview is None or member.step_index == 0:
            return []
        latents = member.previous_denoised[0, :, member.num_references :].transpose(0, 1)
        count = min(_PREVIEW_FRAMES, len(latents))
        shown = [round(i * (len(latents) - 1) / max(1, count - 1)) for i in range(count)]
        return self._preview.images(latents[shown])

    @torch.inference_mode()
    def decode(self, generation: Generation, keep_going: KeepGoing = to_the_end) -> Clip:
        """The finished clip, without its references.

        A frame too large for the device's memory is decoded in tiles. Raises ValueError before the
        last step, and ArithmeticError for frames that are not finite.
        """
        member = own(generation)
        if not member.is_done:
            raise ValueError(f"generation is at step {member.step_index} of {member.num_steps}")
        if self._last_batch is not None and member.serial in self._last_batch.serials:
            self._last_batch = None
        latents = member.latents[:, :, member.num_references :]
        video = decode_clip(self.autoencoder, latents, keep_going)
        return Clip(to_frames(video[0]), member.fps)

    def _velocity(
        self,
        latents: Tensor,
        time: TimeModulation,
        conditioning: BatchConditioning,
        keep_going: KeepGoing,
    ) -> Tensor:
        """Noise minus data at the latents [B, 16, T, h, w], guided where the batch is."""
        context, scales, text = conditioning.context, conditioning.scales, conditioning.text
        count = len(latents)
        if conditioning.guidance_scale is None:
            return self.transformer(latents, time, text, context, scales)
        if context.shape[1] > TOKENS_TOGETHER:
            own = text.index(range(count))
            unguided = self.transformer(latents, time, own, context, scales)
            keep_going()
            own = text.index(range(count, 2 * count))
            guided = self.transformer(latents, time, own, context, scales)
        else:
            doubled = time if len(time.embedded) == 1 else TimeModulation.cat([time, time])
            unguided, guided = self.transformer(
                torch.cat([latents, latents]),
                doubled,
                text,
                torch.cat([context, context]),
                torch.cat([scales, scales]),
            ).chunk(2)
        return unguided + conditioning.guidance_scale * (guided - unguided)

    def _check_room(self, tokens: int, clips: int, *, is_guided: bool) -> None:
        # A device refuses what it has not got; a host grants it and then kills the process.
        if self.device.type == "cpu":
            item_bytes = self.transformer.dtype.itemsize
            needed = step_bytes(
                self.transformer.config, tokens, item_bytes, clips=clips, is_guided=is_guided
            )
            check_room(needed, available_host_bytes())

    def _encode(self, video: Tensor, keep_going: KeepGoing = to_the_end) -> Tensor:
        return encode_clip(self.autoencoder, video.to(self.device), keep_going)

    def _conditioning(self, members: list[WanVaceGeneration]) -> BatchConditioning:
        # Kept for one batch only: text keys and values are the largest tensors of a request.
        if self._last_batch is None or self._last_batch.serials != serials_of(members):
            self._last_batch = None
            self._last_batch = BatchConditioning(members)
        return self._last_batch

    def _noise(self, request: VideoRequest) -> Tensor:
        frames = len(request.reference_images) + latent_frames(request.num_frames)
        sides = (request.height // PIXELS_PER_LATENT, request.width // PIXELS_PER_LATENT)
        generator = torch.Generator().manual_seed(request.seed)
        noise = torch.randn(1, LATENT_CHANNELS, frames, *sides, generator=generator)
        return noise.to(self.device)


def _offload(transformer: WanVaceTransformer, device: torch.device, layers: int) -> None:
    """Move everything but `layers` of the blocks to `device`; those come when they are needed."""
    blocks = transformer.blocks_in_call_order()
    for name, child in transformer.named_children():
        if name not in ("blocks", "vace_blocks"):
            child.to(device)
    offload(blocks, device, resident=len(blocks) - layers)
