"""Train the demo's decoder further: `python -m models.demo.polish_decoder --start STATE ...`.

The encoder stays as it is, so latents that were cached from it stay valid and the transformer can
train at the same time. Scenes are mostly those of the captions, half of them with a small shape,
for those are the last to become sharp; latents are disturbed as in the autoencoder's own training.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.demo.dataset import draw_scenes
from models.demo.grammar import random_scene, training_prompt
from models.demo.train_autoencoder import (
    disturb,
    evaluate,
    load_autoencoder,
    random_scenes,
    reconstruction_loss,
)
from models.demo.training import (
    SAVE_EVERY_SECONDS,
    Average,
    Clock,
    base_parser,
    generator,
    load_state,
    mixed_precision,
    save_state,
    warm_cosine,
)
from models.sana import autoencoder_dc

BATCH = 6
# Share of batches of scenes of any size and place, to keep the decoder general.
FREE_SHARE = 0.25
# Share of the other scenes whose shape is made small.
SMALL_SHARE = 0.5


def caption_scenes(seed: int, step: int) -> Tensor:
    """A batch of pictures [BATCH, 3, 256, 256] as captions of the training set ask for them."""
    rng = random.Random(f"{seed}-{step}")
    wanted = [training_prompt(rng).asked for _ in range(BATCH)]
    wanted = [
        replace(asked, size="small") if rng.random() < SMALL_SHARE else asked for asked in wanted
    ]
    return draw_scenes([random_scene(asked, rng) for asked in wanted], 256, 256)


def main() -> None:
    parser = base_parser("Train the demo decoder further.")
    parser.add_argument("--start", type=Path, required=True, help="state of the autoencoder")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    if not arguments.no_compile:
        torch._dynamo.config.recompile_limit = 64
        autoencoder_dc.rms_norm = torch.compile(autoencoder_dc.rms_norm, dynamic=True)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    model = load_autoencoder(arguments.start)
    decoder = model.decoder.requires_grad_(True)
    average = Average(model, 0.998)
    optimizer = torch.optim.AdamW(
        decoder.parameters(), arguments.learning_rate, betas=(0.9, 0.98), fused=True
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
        rng = generator(arguments.seed + 1, step)
        if torch.rand((), generator=rng) < FREE_SHARE:
            scenes = random_scenes(rng, BATCH, 256)
        else:
            scenes = caption_scenes(arguments.seed, step)
        rate = arguments.learning_rate * warm_cosine(clock.progress, step, warmup=50)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with mixed_precision():
            with torch.no_grad():
                latents = model.encode(scenes)
            decoded = model.decode(disturb(latents, rng))
        loss = reconstruction_loss(decoded.float(), scenes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        average.update(model, step)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"step {step} {clock.spent:.0f}s loss {running:.4f} lr {rate:.2e}", flush=True)
        if clock.spent - saved > SAVE_EVERY_SECONDS:
            saved = clock.spent
            save()
    save()
    average.copy_to(model)
    print(f"done after {clock.step} steps, averaged PSNR {evaluate(model):.2f} dB", flush=True)


if __name__ == "__main__":
    main()
