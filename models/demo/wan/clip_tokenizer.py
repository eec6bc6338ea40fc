"""The video demo's tokenizer: unigram with byte fallback, in the form of UMT5's.

Trained on captions of the grammar, so that those take few tokens; any other text still encodes,
byte by byte if need be. `tokenizer.json` and its configuration load with `AutoTokenizer`.
"""

from __future__ import annotations

import json
import math
import random
import re
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from models.demo.wan.captions import random_motion, training_prompt

# Ids 0 to 3, as UMT5 has them.
PAD, EOS, BOS, UNKNOWN = "<pad>", "</s>", "<s>", "<unk>"
SPECIAL_TOKENS = (PAD, EOS, BOS, UNKNOWN)
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_WORD = re.compile(r"\w+")
# Letters cost more than any word, bytes more than any letter.
_LETTER_SCORE, _BYTE_SCORE = -20.0, -30.0
VOCABULARY = 512
"""Rows of the embedding; the last ones are not in use."""

_TRAINING_CAPTIONS = 8000


def _corpus(seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(_TRAINING_CAPTIONS):
        motion, size = random_motion(rng)
        yield training_prompt(motion, size, rng, is_shown=rng.random() < 0.3).text


def train_tokenizer(seed: int = 0) -> Tokenizer:
    """Learn the vocabulary: every word of the captions, every letter, every byte.

    A unigram model of so small a language: a word is as likely as it is frequent, so that words
    are never split, and letters and bytes are only there for words that are not in it.
    """
    counts = Counter(word for text in _corpus(seed) for word in _WORD.findall(text))
    total = sum(counts.values())
    pieces = [(_SPACE + word, math.log(count / total)) for word, count in counts.most_common()]
    letters = [_SPACE, *string.ascii_lowercase, *string.digits, *string.punctuation]
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS] + pieces
    vocabulary += [(letter, _LETTER_SCORE) for letter in letters]
    vocabulary += [(byte, _BYTE_SCORE) for byte in _BYTES]
    tokenizer = Tokenizer(models.Unigram(vocabulary, SPECIAL_TOKENS.index(UNKNOWN), True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}",
        pair=f"$A {EOS} $B {EOS}",
        special_tokens=[(EOS, SPECIAL_TOKENS.index(EOS))],
    )
    return tokenizer


def save_tokenizer(folder: Path, seed: int = 0) -> None:
    """Train and write `tokenizer.json` and `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(seed).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "bos_token": BOS,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "padding_side": "right",
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
