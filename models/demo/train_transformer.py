"""Train the demo's transformer: `python -m models.demo.train_transformer --autoencoder F ...`.

The frozen autoencoder and text encoder fill a pool of latents and text states; a Sana transformer
that predicts the velocity noise - data comes out. One caption in ten is replaced by the empty
prompt for classifier-free guidance.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.demo.dataset import Pool
from models.demo.flow_training import FlowTraining, flow_parser, noisy
from models.demo.train_autoencoder import load_autoencoder
from models.demo.train_text_encoder import HIDDEN_SIZE, load_caption_encoder
from models.sana.transformer import SanaTransformer, SanaTransformerConfig

CONFIG = SanaTransformerConfig(
    in_channels=32,
    out_channels=32,
    num_attention_heads=6,
    attention_head_dim=32,
    num_layers=4,
    num_cross_attention_heads=3,
    cross_attention_head_dim=64,
    caption_channels=HIDDEN_SIZE,
    mlp_ratio=2.25,
    sample_size=8,
    interpolation_scale=1.0,
)
BATCH_TOKENS = 48 * 64
MAX_BATCH = 96
CAPTION_DROPOUT = 0.1
FIRST_SAMPLES, SAMPLES = 3072, 16384
GROW_EVERY = 8


def build_transformer() -> SanaTransformer:
    """A fresh transformer whose output starts at zero."""
    model = SanaTransformer(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "table" not in name and "conv_depth" not in name:
                torch.nn.init.xavier_uniform_(parameter.view(len(parameter), -1))
            elif name.endswith("bias"):
                parameter.zero_()
        model.proj_out.weight.zero_()
        model.time_embed.linear.weight.normal_(std=0.02)
    return model


def flow_loss(
    model: SanaTransformer, data: Tensor, states: Tensor, mask: Tensor, rng: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity on a batch of unit-variance latents [B, 32, h, w]."""
    latents, target, sigmas = noisy(data, rng)
    time, text = model.embed_timesteps(1000 * sigmas), model.encode_text(states, mask)
    velocity = model(latents, time, text)
    return (velocity.float() - target).square().mean()


def pick_batch(
    pools: list[Pool], shares: list[float], empty: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Raw latents, text states and mask of a random batch of one size, captions dropped at random.

    `empty` [1, C] are the text states of the empty prompt.
    """
    pool = pools[int(torch.multinomial(torch.tensor(shares), 1, generator=rng))]
    count = min(MAX_BATCH, max(1, BATCH_TOKENS // pool.tokens))
    latents, states, lengths = pool.sample(count, rng)
    dropped = torch.rand(count, generator=rng) < CAPTION_DROPOUT
    states[dropped, :1] = empty
    lengths = torch.where(dropped, 1, lengths)
    mask = torch.arange(states.shape[1])[None] < lengths[:, None]
    return latents, states, mask


def parse_size(text: str) -> tuple[int, int, float]:
    """`HEIGHTxWIDTH:SHARE` of the batches."""
    shape, _, share = text.partition(":")
    height, _, width = shape.partition("x")
    return int(height), int(width), float(share)


def main() -> None:
    parser = flow_parser("Train the demo transformer.", learning_rate=1.4e-3)
    parser.add_argument("--autoencoder", type=Path, required=True, help="its state file")
    parser.add_argument("--text-encoder", type=Path, required=True, help="folder of that training")
    parser.add_argument("--sizes", nargs="+", default=["256x256:1"], help="HEIGHTxWIDTH:SHARE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    autoencoder = load_autoencoder(arguments.autoencoder)
    text = load_caption_encoder(arguments.text_encoder)
    with torch.no_grad():
        empty = text([""], instructed=False)[0][0]

    model = build_transformer()
    training = FlowTraining(model, arguments)
    sizes = [parse_size(size) for size in arguments.sizes]
    shares = [share for _, _, share in sizes]
    # A resumed training draws new samples.
    pools = [
        Pool(
            height, width, round(SAMPLES * share / sum(shares)), training.seed + training.clock.step
        )
        for height, width, share in sizes
    ]
    for pool, share in zip(pools, shares, strict=True):
        while pool.count < FIRST_SAMPLES * share / sum(shares):
            pool.grow(autoencoder, text)
    scale = 1.0 / pools[0].root_mean_square() if training.state is None else training.state["scale"]
    print(f"{[pool.count for pool in pools]} samples, scaling factor {scale:.4f}", flush=True)

    def loss_of(step: int, rng: torch.Generator) -> Tensor:
        if step % GROW_EVERY == 0:
            for pool in pools:
                pool.grow(autoencoder, text)
        latents, states, mask = pick_batch(pools, shares, empty, rng)
        return flow_loss(model, latents * scale, states, mask, rng)

    training.run(loss_of, scale=scale)


if __name__ == "__main__":
    main()
