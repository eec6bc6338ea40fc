"""Train the demo's DC-AE on drawn shapes: `python -m models.demo.train_autoencoder --seconds 1800`.

Scenes are drawn on the fly, encoded, disturbed by noise (so that the decoder forgives the small
errors of a diffusion model) and decoded; the loss is on pixels and on their differences, which
keeps edges sharp. Small crops first, for they are cheap, then whole pictures of 256 px.
The recipe follows the phases of DC-AE (arXiv 2410.10733) without its adversarial part.

On two cores, two processes of one thread are faster than one process of two:
`torchrun --nproc-per-node 2 -m models.demo.train_autoencoder --seconds 1800 --out DIR`.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from models.demo.colours import palette
from models.demo.shapes import SHAPES, draw
from models.demo.training import (
    SAVE_EVERY_SECONDS,
    Average,
    Clock,
    base_parser,
    generator,
    join_processes,
    load_state,
    mixed_precision,
    psnr,
    save_state,
    share_gradients,
    warm_cosine,
)
from models.sana import autoencoder_dc
from models.sana.autoencoder_dc import AutoencoderDC, AutoencoderDCConfig

CONFIG = AutoencoderDCConfig(
    encoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
    decoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
    encoder_block_out_channels=(16, 16, 32, 64, 128, 128),
    decoder_block_out_channels=(16, 16, 32, 64, 128, 128),
    encoder_layers_per_block=(0, 1, 1, 1, 1, 1),
    decoder_layers_per_block=(0, 1, 2, 3, 1, 2),
    encoder_qkv_multiscales=((), (), (), (), (), ()),
    decoder_qkv_multiscales=((), (), (), (), (), ()),
)
# Only crops at first; later this share of the batches. A crop holds more edges for its pixels.
CROPS_ONLY, CROP_SHARE = 0.3, 0.5
# Batches of one process.
CROP, CROP_BATCH = 128, 12
WHOLE, WHOLE_BATCH = 256, 4
MAX_NOISE = 0.25


def random_scenes(rng: torch.Generator, count: int, side: int) -> Tensor:
    """Draw `count` scenes [count, 3, side, side] in [-1, 1]: any shape, place, size and colours.

    Radii are in pixels whatever the side, mostly those of shapes in a 256 px picture.
    """
    colours = palette()
    first = torch.randint(len(colours), (count,), generator=rng)
    second = (first + torch.randint(1, len(colours), (count,), generator=rng)) % len(colours)
    foregrounds, backgrounds = colours[first], colours[second]
    foregrounds = foregrounds + 0.03 * torch.randn(count, 3, generator=rng)
    backgrounds = backgrounds + 0.03 * torch.randn(count, 3, generator=rng)
    free = torch.rand(count, 1, generator=rng) < 0.1
    foregrounds = torch.where(free, torch.rand(count, 3, generator=rng) * 2 - 1, foregrounds)
    low, high = math.log(26.0), math.log(70.0)
    wide = (torch.rand(count, generator=rng) < 0.15).float()
    place = torch.rand(count, generator=rng)
    radii = torch.exp(low - 0.7 * wide + place * (high - low + 1.4 * wide))
    margin = 0.0 if side < WHOLE else 0.2
    centers = (margin + (1 - 2 * margin) * torch.rand(count, 2, generator=rng)) * side
    shapes = torch.randint(len(SHAPES), (count,), generator=rng)
    picture = draw(shapes, foregrounds, backgrounds, centers, radii, side, side)
    return picture.clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def reconstruction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """L1 and L2 on pixels [B, 3, H, W] plus L1 on the differences of neighbours.

    Pictures of small shapes weigh more, up to twice, for most of their pixels are background.
    """
    error = prediction - target
    across = (error[..., 1:] - error[..., :-1]).abs().mean((1, 2, 3))
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean((1, 2, 3))
    pixels = error.abs().mean((1, 2, 3)) + error.square().mean((1, 2, 3))
    area = ((target - target[..., :1, :1]).abs().sum(1) > 0.2).float().mean((1, 2))
    weight = (0.1 / (area + 0.02)).sqrt().clamp(0.5, 2.0)
    return (weight * (pixels + across + down)).mean()


def disturb(latents: Tensor, rng: torch.Generator) -> Tensor:
    """Add noise of a random strength, relative to the latents' own scale, to each sample."""
    strength = torch.rand(len(latents), 1, 1, 1, generator=rng) * 1.4 - 0.4
    strength = strength.clamp_min(0.0) * MAX_NOISE * latents.detach().float().std()
    return latents + strength * torch.randn(latents.shape, generator=rng)


def unit_variance_penalty(latents: Tensor) -> Tensor:
    """Keep the latents near unit mean square, so that noise has a scale to be relative to."""
    return (latents.float().square().mean() - 1.0).square()


@torch.no_grad()
def evaluate(model: AutoencoderDC, seed: int = 7) -> float:
    """PSNR in dB of 24 unseen scenes of 256 px, reconstructed in mixed precision."""
    scenes = random_scenes(generator(seed, 0), 24, WHOLE)
    with mixed_precision():
        decoded = torch.cat([model.decode(model.encode(part)) for part in scenes.split(8)])
    return psnr(decoded, scenes)


def load_autoencoder(path: Path) -> AutoencoderDC:
    """The averaged autoencoder of a state file, channels-last, frozen."""
    state = load_state(path)
    model = AutoencoderDC(CONFIG).to(memory_format=torch.channels_last)
    model.load_state_dict({**state["model"], **state["average"]})
    return model.requires_grad_(False).eval()


def main() -> None:
    rank, world = join_processes()
    parser = base_parser("Train the demo autoencoder.")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--start", type=Path, help="state file to take the first weights from")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    if not arguments.no_compile:
        # Norms are a third of the time in eager mode: many passes over big activations.
        torch._dynamo.config.recompile_limit = 64
        autoencoder_dc.rms_norm = torch.compile(autoencoder_dc.rms_norm, dynamic=True)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    model = AutoencoderDC(CONFIG).to(memory_format=torch.channels_last)
    if arguments.start:
        first = load_state(arguments.start)
        model.load_state_dict({**first["model"], **first["average"]})
    average = Average(model, 0.998)
    optimizer = torch.optim.AdamW(
        model.parameters(), arguments.learning_rate, betas=(0.9, 0.98), fused=True
    )
    clock = Clock(arguments.seconds, arguments.steps)
    if arguments.resume:
        state = load_state(out / "autoencoder.state")
        model.load_state_dict(state["model"])
        average.values = state["average"]
        optimizer.load_state_dict(state["optimizer"])
        clock.step, clock.spent = state["step"], state["spent"]

    def save() -> None:
        save_state(
            out / "autoencoder.state",
            model=model.state_dict(),
            average=average.values,
            optimizer=optimizer.state_dict(),
            step=clock.step,
            spent=clock.spent,
        )

    saved, running = clock.spent, 0.0
    for step in clock.ticks():
        rng = generator(arguments.seed, step * world + rank)
        crops = arguments.start is None and clock.progress < CROPS_ONLY
        crops = crops or torch.rand((), generator=rng).item() < CROP_SHARE
        side, batch = (CROP, CROP_BATCH) if crops else (WHOLE, WHOLE_BATCH)
        scenes = random_scenes(rng, batch, side)
        rate = arguments.learning_rate * warm_cosine(clock.progress, step, warmup=200)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with mixed_precision():
            latents = model.encode(scenes)
            noisy = disturb(latents, rng)
            decoded = model.decode(noisy)
        loss = reconstruction_loss(decoded.float(), scenes) + 0.01 * unit_variance_penalty(latents)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if world > 1:
            share_gradients(model, clock)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model, step)
        running = loss.item() if step == 0 else 0.99 * running + 0.01 * loss.item()
        if rank == 0 and step % 100 == 0:
            print(
                f"step {step} {clock.spent:.0f}s {side}px loss {running:.4f} "
                f"rms {latents.float().square().mean().sqrt().item():.2f} lr {rate:.2e}",
                flush=True,
            )
        if rank == 0 and clock.spent - saved > SAVE_EVERY_SECONDS:
            saved = clock.spent
            save()
            print(f"step {step} saved, PSNR {evaluate(model):.2f} dB", flush=True)
    if rank == 0:
        save()
        average.copy_to(model)
        print(f"done after {clock.step} steps, averaged PSNR {evaluate(model):.2f} dB", flush=True)


if __name__ == "__main__":
    main()
