"""Train the video demo's transformer: `python -m models.demo.wan.train_transformer --pool DIR ...`.

A pool of latents and contexts from the finished autoencoder and the frozen text encoder come in; a
Wan-VACE transformer that predicts the velocity comes out. In a third of the samples the text is all
that the model is told, in the others a task's context as well. One caption in ten is replaced by
the empty prompt for classifier-free guidance.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor

from models.demo.flow_training import FlowTraining, flow_parser, noisy
from models.demo.wan.captions import training_prompt
from models.demo.wan.clip_pool import Pool, Samples
from models.demo.wan.tasks import GROUND_SHOWN, SHOWN
from models.demo.wan.train_text_encoder import (
    HIDDEN_SIZE,
    TEXT_LEN,
    CaptionEncoder,
    load_caption_encoder,
)
from models.wan.transformer import WanVaceConfig, WanVaceTransformer

# Widths are whole blocks of the K-quants, 256 wide.
CONFIG = WanVaceConfig(
    num_heads=2,
    ffn_dim=512,
    num_layers=4,
    vace_layers=(0,),
    text_dim=HIDDEN_SIZE,
    text_len=TEXT_LEN,
)
CAPTION_DROPOUT, TEXT_ONLY = 0.1, 0.35
# Clips with a reference are a frame longer, so they make batches of their own.
REFERENCE_EVERY = 3
REFRESH_EVERY = 100


def build_transformer() -> WanVaceTransformer:
    """A fresh transformer whose output and hints start at zero, as the published ones did."""
    model = WanVaceTransformer(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "modulation" not in name:
                torch.nn.init.xavier_uniform_(parameter.view(len(parameter), -1))
            elif name.endswith("bias"):
                parameter.zero_()
        for layer in (model.time_embedding[0], model.time_embedding[2]):
            layer.weight.normal_(std=0.02)
        model.head.head.weight.zero_()
        for block in model.vace_blocks:
            block.after_proj.weight.zero_()
    return model


def word(samples: Samples, text: CaptionEncoder, rng: random.Random) -> list[Tensor]:
    """Text states of a new caption for each sample, some of them of the empty prompt."""
    captions = [
        training_prompt(
            motion, size, rng, is_shown=task in SHOWN, is_ground_shown=task in GROUND_SHOWN
        ).text
        for task, motion, size in zip(samples.tasks, samples.motions, samples.sizes, strict=True)
    ]
    return text(["" if rng.random() < CAPTION_DROPOUT else caption for caption in captions])


def main() -> None:
    parser = flow_parser("Train the video demo's transformer.", learning_rate=1.2e-3)
    parser.add_argument("--pool", type=Path, required=True, help="folder of its training set")
    parser.add_argument("--batch", type=int, default=64, help="clips a step of each process")
    parser.add_argument("--text-encoder", type=Path, required=True, help="folder of that training")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    pool = Pool(arguments.pool)
    text = load_caption_encoder(arguments.text_encoder)
    model = build_transformer()
    training = FlowTraining(model, arguments)
    print(f"{len(pool)} samples", flush=True)

    def loss_of(step: int, rng: torch.Generator) -> Tensor:
        if step % REFRESH_EVERY == 0:
            pool.refresh()
        with_reference = step % REFERENCE_EVERY == 0
        count = arguments.batch * 3 // 4 if with_reference else arguments.batch
        samples = pool.sample(count, rng, with_reference=with_reference)
        contexts = samples.contexts
        if not with_reference:
            untold = torch.rand(count, generator=rng) < TEXT_ONLY
            contexts[untold] = pool.empty_context
            samples.tasks[:] = [
                None if alone else task
                for alone, task in zip(untold.tolist(), samples.tasks, strict=True)
            ]
        words = random.Random(int(torch.randint(2**31, (), generator=rng)))
        states = word(samples, text, words)
        latents, target, sigmas = noisy(samples.latents, rng)
        velocity = model(
            latents,
            model.embed_timesteps(1000 * sigmas),
            model.encode_text(states),
            model.encode_context(contexts),
        )
        return (velocity.float() - target).square().mean()

    training.run(loss_of, **pool.statistics)


if __name__ == "__main__":
    main()
