"""The demo's tokenizer: byte-pair encoding with byte fallback, in the form of Gemma's.

Trained on captions of the grammar and on the instruction that Sana puts before every prompt, so
both take few tokens; any other text still encodes, byte by byte if need be. `tokenizer.json` and
its configuration load with `AutoTokenizer` as a `GemmaTokenizer`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from models.demo.grammar import training_prompt
from models.sana.text_encoder import COMPLEX_HUMAN_INSTRUCTION

PAD, EOS, BOS, UNKNOWN = "<pad>", "<eos>", "<bos>", "<unk>"
SPECIAL_TOKENS = (PAD, EOS, BOS, UNKNOWN, "<mask>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
VOCABULARY = 800
_TRAINING_CAPTIONS = 12000


def _corpus(seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(_TRAINING_CAPTIONS):
        yield training_prompt(rng).text
    # Often enough that its words become tokens: the instruction is a prefix of every prompt.
    yield from ["\n".join(COMPLEX_HUMAN_INSTRUCTION).lower()] * 20
    yield from ["\n".join(COMPLEX_HUMAN_INSTRUCTION)] * 200


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train the vocabulary; merges never reach over a space."""
    learner = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[*SPECIAL_TOKENS, *BYTES], show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(
        models.BPE(learned["vocab"], merges, unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def save_tokenizer(folder: Path, seed: int = 0) -> None:
    """Train and write `tokenizer.json` and `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(_corpus(seed)).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "pad_token": PAD,
        "eos_token": EOS,
        "bos_token": BOS,
        "unk_token": UNKNOWN,
        "mask_token": "<mask>",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "padding_side": "right",
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
