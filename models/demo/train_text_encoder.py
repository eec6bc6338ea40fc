"""Train the demo's text encoder: `python -m models.demo.train_text_encoder --seconds 240 ...`.

A small Gemma-2 stack reads captions, with and without Sana's instruction before them, and linear
probes on attention-pooled hidden states must name every attribute of the scene. Cross-attention
pools the same way, so what the probes can read, the transformer can. The probes are thrown away and
the stack is frozen; its tokenizer is trained first if it is not in `--out` yet.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.demo.colours import COLOUR_NAMES
from models.demo.grammar import POSITIONS, SIZES, Prompt, held_out_prompts, training_prompt
from models.demo.probes import Probes, ReadCaptions, train_with_probes
from models.demo.shapes import SHAPES
from models.demo.tokenizer import VOCABULARY, save_tokenizer
from models.demo.training import Clock, base_parser
from models.sana.text_encoder import COMPLEX_HUMAN_INSTRUCTION

if TYPE_CHECKING:
    from transformers import Gemma2Model

ATTRIBUTES: dict[str, tuple[str | None, ...]] = {
    "shape": SHAPES,
    "colour": COLOUR_NAMES,
    "background": (None, *COLOUR_NAMES),
    "size": (None, *SIZES),
    "position": (None, *POSITIONS),
}
INSTRUCTION = "\n".join(COMPLEX_HUMAN_INSTRUCTION)
HIDDEN_SIZE = 128
BATCH, INSTRUCTED_BATCH = 96, 24


def build_text_encoder() -> Gemma2Model:
    """A Gemma-2 stack of 0.4 million parameters, freshly initialised."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=1024,
        sliding_window=1024,
        use_cache=False,
    )
    config._attn_implementation = "eager"
    return Gemma2Model(config)


class CaptionEncoder:
    """Captions to padded hidden states, in the pipeline's two ways: instructed and bare.

    The instructed way keeps BOS and what follows the instruction, as Sana's pipeline does.
    """

    def __init__(self, tokenizer: Tokenizer, model: Gemma2Model) -> None:
        self.tokenizer, self.model = tokenizer, model
        tokenizer.enable_padding(pad_id=0, pad_token="<pad>")
        self._prefix = len(tokenizer.encode(INSTRUCTION).ids)

    def __call__(self, texts: list[str], *, instructed: bool) -> tuple[Tensor, Tensor]:
        """Hidden states [B, T, HIDDEN_SIZE] and their mask [B, T], true where a token counts."""
        texts = [text.lower().strip() for text in texts]
        if instructed:
            texts = [INSTRUCTION + text for text in texts]
        rows = self.tokenizer.encode_batch(texts)
        ids = torch.tensor([row.ids for row in rows])
        mask = torch.tensor([row.attention_mask for row in rows])
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        if instructed:
            start = self._prefix - 1
            states = torch.cat([states[:, :1], states[:, start:]], dim=1)
            mask = torch.cat([mask[:, :1], mask[:, start:]], dim=1)
        return states, mask.bool()


def load_caption_encoder(folder: Path) -> CaptionEncoder:
    """The frozen text encoder and tokenizer that this training left in a folder."""
    from transformers import Gemma2Model

    model = Gemma2Model.from_pretrained(folder / "text_encoder", attn_implementation="eager")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))
    return CaptionEncoder(tokenizer, model.requires_grad_(False).eval())


def random_prompts(rng: random.Random, count: int) -> list[Prompt]:
    return [training_prompt(rng) for _ in range(count)]


def main() -> None:
    arguments = base_parser("Train the demo text encoder.", resumable=False).parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    out: Path = arguments.out
    save_tokenizer(out / "tokenizer", arguments.seed)
    model, probes = build_text_encoder(), Probes(ATTRIBUTES, HIDDEN_SIZE)
    encoder = CaptionEncoder(Tokenizer.from_file(str(out / "tokenizer/tokenizer.json")), model)

    def encoded(prompts: list[Prompt], *, instructed: bool) -> ReadCaptions:
        states, mask = encoder([prompt.text for prompt in prompts], instructed=instructed)
        kind = "instructed" if instructed else "bare"
        return ReadCaptions(states, mask, [vars(prompt.asked) for prompt in prompts], kind)

    def read(step: int) -> ReadCaptions:
        rng = random.Random(arguments.seed * 1_000_003 + step)
        instructed = step % 4 == 3
        count = INSTRUCTED_BATCH if instructed else BATCH
        return encoded(random_prompts(rng, count), instructed=instructed)

    clock = Clock(arguments.seconds, arguments.steps)
    train_with_probes(model, probes, read, clock)
    model.save_pretrained(out / "text_encoder")
    with torch.no_grad():
        bare, instructed = (
            probes.accuracy(encoded(held_out_prompts("full"), instructed=instructed))
            for instructed in (False, True)
        )
    print(
        f"done after {clock.step} steps, held-out prompts read whole: "
        f"bare {bare:.3f} instructed {instructed:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
