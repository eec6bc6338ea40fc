"""Train the video demo's autoencoder: `python -m models.demo.wan.train_autoencoder --steps 2900`.

Single frames first, for they cost a fraction of a clip, then clips; the layers that look back in
time start as if each frame were alone, so that nothing learnt is lost in between. The latents are
disturbed by noise (so that the decoder forgives the small errors of a diffusion model); part of the
clips is grey in places or all over, since that is what VACE has encoded. With `--decoder-only` the
encoder is left as it is and latents keep their meaning.

On two cores, two processes of one thread are faster than one process of two:
`torchrun --nproc-per-node 2 -m models.demo.wan.train_autoencoder --steps 2900 --out DIR`.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.demo.colours import COLOUR_NAMES, palette
from models.demo.grammar import CORE_COLOURS, CORE_SHAPES
from models.demo.shapes import SHAPES
from models.demo.training import (
    SAVE_EVERY_SECONDS,
    Average,
    Clock,
    base_parser,
    generator,
    join_processes,
    load_state,
    psnr,
    save_state,
    share_gradients,
    warm_cosine,
)
from models.demo.wan.clips import FRAMES, SIDE, draw_clips
from models.demo.wan.degrade import degrade
from models.wan.autoencoder import WanAutoencoder, WanAutoencoderConfig

CONFIG = WanAutoencoderConfig(base_dim=8, dim_mult=(1, 3, 6, 8), num_res_blocks=1)

# Of the batches after the first phase, this share is still of single frames.
IMAGE_SHARE = 0.1
IMAGE_BATCH, CLIP_BATCH = 32, 4
MAX_NOISE = 0.25
# Share of the training before noise sets in.
QUIET = 0.1

_WAYS = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])


def random_clips(rng: torch.Generator, count: int, frames: int) -> Tensor:
    """Draw `count` clips [count, 3, frames, SIDE, SIDE] in [-1, 1]; some shapes stand still."""
    indices = torch.tensor([COLOUR_NAMES.index(name) for name in CORE_COLOURS])
    colours = palette()[indices]
    first = torch.randint(len(colours), (count,), generator=rng)
    second = (first + torch.randint(1, len(colours), (count,), generator=rng)) % len(colours)
    foregrounds = colours[first] + 0.02 * torch.randn(count, 3, generator=rng)
    backgrounds = colours[second] + 0.02 * torch.randn(count, 3, generator=rng)
    is_free = torch.rand(count, 1, generator=rng) < 0.05
    foregrounds = torch.where(is_free, torch.rand(count, 3, generator=rng) * 2 - 1, foregrounds)
    # A little smaller and larger than what captions name, so that the ends are known as well.
    radii = 12.0 + 6.5 * torch.rand(count, generator=rng)
    ways = _WAYS[torch.randint(4, (count,), generator=rng)]
    reach = torch.where(ways != 0, 3.0, 10.0)
    middles = SIDE / 2 + (torch.rand(count, 2, generator=rng) * 2 - 1) * reach
    lengths = 20.0 + 8.0 * torch.rand(count, 1, generator=rng)
    lengths = torch.where(torch.rand(count, 1, generator=rng) < 0.1, 0.0, lengths)
    # A single frame is taken anywhere on the way.
    start = torch.rand(count, 1, generator=rng) if frames == 1 else 0.0
    starts = middles + (start - 0.5) * lengths * ways
    names = torch.randint(len(CORE_SHAPES), (count,), generator=rng)
    shapes = torch.tensor([SHAPES.index(name) for name in CORE_SHAPES])[names]
    clips = draw_clips(
        shapes, foregrounds, backgrounds, starts, lengths * ways, radii, frames=frames
    )
    return clips.clamp(-1, 1)


def reconstruction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """L1 and L2 on pixels [B, 3, T, H, W], more about edges, and L1 on differences of neighbours in
    space and time."""
    error = prediction - target
    across = target[..., 1:, 1:] - target[..., 1:, :-1]
    down = target[..., 1:, 1:] - target[..., :-1, 1:]
    edges = (across.abs() + down.abs()).sum(1).clamp(max=1.0)
    near = F.max_pool2d(edges, 5, stride=1, padding=2)
    weight = F.pad(1.0 + 3.0 * near, (1, 0, 1, 0), value=1.0)[:, None]
    loss = (weight * (error.abs() + error.square())).mean()
    loss = loss + (error[..., 1:] - error[..., :-1]).abs().mean()
    loss = loss + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    if error.shape[2] > 1:
        loss = loss + 0.5 * (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
    return loss


def disturb(latents: Tensor, most: float, rng: torch.Generator) -> Tensor:
    """Add noise of a random strength, relative to the latents' own scale, to each clip."""
    strength = torch.rand(len(latents), 1, 1, 1, 1, generator=rng) * 1.4 - 0.4
    strength = strength.clamp_min(0.0) * most * latents.detach().std()
    return latents + strength * torch.randn(latents.shape, generator=rng)


def start_frame_by_frame(autoencoder: WanAutoencoder) -> None:
    """Set what looks back in time to look at the last frame alone."""
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            if parameter.ndim != 5 or parameter.shape[2] != 3:
                continue
            parameter[:, :, :2] = 0.0
            if "time_conv" in name:
                width = parameter.shape[1]
                parameter.zero_()
                for part in parameter.split(width):
                    part[:, :, 2, 0, 0] = torch.eye(width)


@torch.no_grad()
def evaluate(model: WanAutoencoder, seed: int = 7) -> str:
    """PSNR in dB of 32 unseen clips, of their first and last frames, and of 32 grey in places."""
    rng = generator(seed, 0)
    clips = random_clips(rng, 32, FRAMES)
    grey = degrade(random_clips(rng, 32, FRAMES), rng)
    found, found_grey = (
        torch.cat([model.decode(model.encode(part)) for part in batch.split(8)])
        for batch in (clips, grey)
    )
    return (
        f"PSNR clip {psnr(found, clips):.2f} first {psnr(found[:, :, 0], clips[:, :, 0]):.2f} "
        f"last {psnr(found[:, :, -1], clips[:, :, -1]):.2f} grey {psnr(found_grey, grey):.2f}"
    )


def load_autoencoder(path: Path) -> WanAutoencoder:
    """The averaged autoencoder of a state file, frozen."""
    state = load_state(path)
    model = WanAutoencoder(CONFIG)
    model.load_state_dict({**state["model"], **state["average"]})
    return model.requires_grad_(False).eval()


def main() -> None:
    rank, world = join_processes()
    parser = base_parser("Train the video demo's autoencoder.")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--image-steps", type=int, default=700, help="steps of the first phase")
    parser.add_argument("--hold", type=float, default=0.3, help="share at the full learning rate")
    parser.add_argument("--start", type=Path, help="state file to take the first weights from")
    parser.add_argument("--noise", type=float, default=MAX_NOISE, help="most noise on latents")
    parser.add_argument("--decoder-only", action="store_true", help="leave the encoder as it is")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    path = out / "autoencoder.state"

    if arguments.start is not None:
        model = load_autoencoder(arguments.start).requires_grad_(True)
    else:
        model = WanAutoencoder(CONFIG)
        start_frame_by_frame(model)
    for parameter in model.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    if arguments.decoder_only:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    average = Average(model, 0.998)
    clock = Clock(arguments.seconds, arguments.steps)
    if arguments.resume:
        state = load_state(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, clock.step, clock.spent = state["average"], state["step"], state["spent"]

    def save() -> None:
        save_state(
            path,
            model=model.state_dict(),
            average=average.values,
            optimizer=optimizer.state_dict(),
            step=clock.step,
            spent=clock.spent,
        )

    saved, running = clock.spent, 0.0
    for step in clock.ticks():
        rng = generator(arguments.seed, step * world + rank)
        # All processes take the same kind of batch, or one would wait for the other.
        draw = torch.rand((), generator=generator(99, step)).item()
        is_image = step < arguments.image_steps or draw < IMAGE_SHARE
        clips = random_clips(rng, *((IMAGE_BATCH, 1) if is_image else (CLIP_BATCH, FRAMES)))
        clips = degrade(clips, rng).contiguous(memory_format=torch.channels_last_3d)
        rate = warm_cosine(clock.progress, step, warmup=100, hold=arguments.hold)
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * rate
        latents = model.encode(clips, latents_at_once=FRAMES)
        is_quiet = clock.progress < QUIET and arguments.start is None
        decoded = model.decode(
            latents if is_quiet else disturb(latents, arguments.noise, rng), latents_at_once=FRAMES
        )
        penalty = (latents.square().mean() - 1.0).square()
        loss = reconstruction_loss(decoded, clips) + 0.01 * penalty
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if world > 1:
            share_gradients(model, clock)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model, step)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if rank == 0 and step % 100 == 0:
            kind = "frames" if is_image else "clips"
            print(f"step {step} {clock.spent:.0f}s {kind} loss {running:.4f}", flush=True)
        if rank == 0 and clock.spent - saved > SAVE_EVERY_SECONDS:
            saved = clock.spent
            save()
            print(f"step {step} saved, {evaluate(model)}", flush=True)
    if rank == 0:
        save()
        average.copy_to(model)
        print(f"done after {clock.step} steps, averaged {evaluate(model)}", flush=True)


if __name__ == "__main__":
    main()
