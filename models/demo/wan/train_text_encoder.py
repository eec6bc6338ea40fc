"""Train the video demo's text encoder: `python -m models.demo.wan.train_text_encoder --seconds 90`.

A small UMT5 stack reads captions, and linear probes on its hidden states must name every attribute
of the clip. The probes are thrown away and the stack is frozen; its tokenizer is made first.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.demo.grammar import CORE_COLOURS, CORE_SHAPES
from models.demo.probes import Probes, ReadCaptions, train_with_probes
from models.demo.training import Clock, base_parser
from models.demo.wan.captions import ClipPrompt, held_out_prompts, random_motion, training_prompt
from models.demo.wan.clip_judge import DIRECTIONS
from models.demo.wan.clip_tokenizer import PAD, VOCABULARY, save_tokenizer
from models.demo.wan.clips import SIZES

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel

HIDDEN_SIZE = 128
TEXT_LEN = 32
"""Tokens that the transformer sees; the longest caption of the grammar has about twenty."""

_BATCH = 96
_POSITION_STD = 2.0
_ATTRIBUTES: dict[str, tuple[str | None, ...]] = {
    "shape": (None, *CORE_SHAPES),
    "colour": (None, *CORE_COLOURS),
    "background": (None, *CORE_COLOURS),
    "direction": (None, *DIRECTIONS),
    "size": (None, *SIZES),
}


def build_text_encoder() -> UMT5EncoderModel:
    """A UMT5 encoder of 0.5 million parameters, freshly initialised."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=VOCABULARY,
        d_model=HIDDEN_SIZE,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        initializer_factor=1.0,
    )
    model = UMT5EncoderModel(config)
    # Which colour is the background's is a matter of neighbours. Heads that look at one place from
    # the start learn it at once; out of a flat bias, which steps of this size hardly move, never.
    for block in model.encoder.block:
        bias = block.layer[0].SelfAttention.relative_attention_bias.weight
        torch.nn.init.normal_(bias, std=_POSITION_STD)
    return model


class CaptionEncoder:
    """Captions to hidden states of their true lengths."""

    def __init__(self, tokenizer: Tokenizer, model: UMT5EncoderModel) -> None:
        self.tokenizer, self.model = tokenizer, model
        tokenizer.enable_padding(pad_id=0, pad_token=PAD)
        tokenizer.enable_truncation(TEXT_LEN)

    def padded(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden states [B, T, HIDDEN_SIZE] and their mask [B, T], true where a token counts."""
        rows = self.tokenizer.encode_batch(list(texts))
        ids = torch.tensor([row.ids for row in rows])
        mask = torch.tensor([row.attention_mask for row in rows])
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states, mask.bool()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> list[Tensor]:
        """Hidden states of each text, [n, HIDDEN_SIZE], without a gradient."""
        states, mask = self.padded(texts)
        return [row[kept] for row, kept in zip(states, mask, strict=True)]


def load_caption_encoder(folder: Path) -> CaptionEncoder:
    """The frozen text encoder and tokenizer that this training left in a folder."""
    from transformers import UMT5EncoderModel

    model = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))
    return CaptionEncoder(tokenizer, model.requires_grad_(False).eval())


def main() -> None:
    parser = base_parser("Train the video demo's text encoder.", resumable=False)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    out: Path = arguments.out
    save_tokenizer(out / "tokenizer", arguments.seed)
    model, probes = build_text_encoder(), Probes(_ATTRIBUTES, HIDDEN_SIZE)
    encoder = CaptionEncoder(Tokenizer.from_file(str(out / "tokenizer/tokenizer.json")), model)

    def encoded(prompts: Sequence[ClipPrompt], kind: str) -> ReadCaptions:
        states, mask = encoder.padded([prompt.text for prompt in prompts])
        truth = [{**vars(prompt.asked), "size": prompt.size} for prompt in prompts]
        return ReadCaptions(states, mask, truth, kind)

    def read(step: int) -> ReadCaptions:
        rng = random.Random(arguments.seed * 1_000_003 + step)
        prompts = [
            training_prompt(*random_motion(rng), rng, is_shown=rng.random() < 0.3)
            for _ in range(_BATCH)
        ]
        return encoded(prompts, "training")

    clock = Clock(arguments.seconds, arguments.steps)
    train_with_probes(model, probes, read, clock)
    model.save_pretrained(out / "text_encoder")
    accuracy = probes.accuracy(encoded(held_out_prompts(300), "held out"))
    print(f"done after {clock.step} steps, held-out prompts read whole: {accuracy:.3f}", flush=True)


if __name__ == "__main__":
    main()
