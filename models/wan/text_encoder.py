"""Prompts to the text embeddings that Wan's cross-attention reads.

A prompt is cleaned, tokenised, cut to the model's number of text tokens with the end token kept,
and run through the UMT5 encoder. The reference pads to that number and masks the padding; masked
tokens cannot reach the others, so only real tokens are run and returned, and whoever needs a fixed
length fills up with zeros. Finished embeddings are remembered: negative prompts hardly ever change.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.errors import CheckpointError
from models.wan.prompt_cleaning import clean_prompt
from models.wan.umt5 import Umt5Encoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class WanTextEncoder:
    """Tokeniser and encoder of one checkpoint, with a bounded memory of recent prompts.

    At most `max_cached` embeddings are kept, on the encoder's device; one takes up to
    `max_tokens * hidden_size` elements (4 MB for UMT5-XXL in bfloat16).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        encoder: Umt5Encoder,
        *,
        max_tokens: int = 512,
        max_cached: int = 32,
    ) -> None:
        tokenizer.enable_truncation(max_tokens)
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._max_cached = max_cached
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def load(
        cls,
        encoder: Path,
        tokenizer: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        max_tokens: int = 512,
        variant: str | None = None,
    ) -> WanTextEncoder:
        """Load an encoder, see `Umt5Encoder.load`, and a `tokenizer.json`.

        Raises ValueError for a dtype it cannot run in and CheckpointError naming file and tensor.
        """
        loaded = _load_tokenizer(tokenizer)
        umt5 = Umt5Encoder.load(encoder, device=device, dtype=dtype, variant=variant)
        if loaded.get_vocab_size() > umt5.vocab_size:
            raise CheckpointError(
                f"{tokenizer}: {loaded.get_vocab_size()} tokens, "
                f"but {encoder} embeds only {umt5.vocab_size}"
            )
        return cls(loaded, umt5, max_tokens=max_tokens)

    @property
    def hidden_size(self) -> int:
        """Channels of an embedding."""
        return self._encoder.hidden_size

    def encode(self, prompt: str) -> Tensor:
        """Embeddings [tokens, hidden_size], 1 <= tokens <= max_tokens, in the encoder's dtype.

        The last is that of the end token, also where a longer prompt was cut. The tensor is shared
        with later calls for the same text and must not be written to.
        """
        text = clean_prompt(prompt)
        if (known := self._cache.get(text)) is not None:
            self._cache.move_to_end(text)
            return known
        embeds = self._encoder.hidden_states(self._token_ids(text))
        self._cache[text] = embeds
        if len(self._cache) > self._max_cached:
            self._cache.popitem(last=False)
        return embeds

    def _token_ids(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(text).ids
        # A vocabulary may have holes, so that its size does not tell its largest id.
        if (largest := max(token_ids)) >= self._encoder.vocab_size:
            raise CheckpointError(
                f"tokenizer.json: has token {largest}, the text encoder embeds only "
                f"{self._encoder.vocab_size}"
            )
        return token_ids


def _load_tokenizer(path: Path) -> Tokenizer:
    # The Rust library reads the file quickly; transformers' wrapper around it would add its own
    # import and nothing that is used here.
    from tokenizers import Tokenizer

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not a tokenizer: {reason}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if len(tokenizer.encode("").ids) != 1:
        raise CheckpointError(f"{path}: must put exactly one token, the end, after a text")
    return tokenizer
