"""Prompts to the text embeddings that Sana's cross-attention reads.

A prompt is lower-cased and stripped, preceded by the instruction the released checkpoints were
trained with, tokenised and run through the Gemma-2 stack; the embeddings of BOS and of the prompt's
own tokens are kept (Xie et al., SANA, arXiv:2410.10629, section 3.1). A negative prompt has no
instruction. The reference pads to a fixed length and masks the padding; under a causal stack the
padding cannot reach a real token, so only real tokens are run and returned. The instruction's keys
and values are computed once, and finished embeddings are remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from models.errors import CheckpointError
from models.sana.gemma2 import Gemma2Stack, Prefix

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Role = Literal["positive", "negative"]

MAX_SEQUENCE_LENGTH = 300
"""Text positions per prompt, BOS included."""

COMPLEX_HUMAN_INSTRUCTION: tuple[str, ...] = (
    "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions "
    "suitable for image generation. Evaluate the level of detail in the user prompt:",
    "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, "
    "and spatial relationships to create vivid and concrete scenes.",
    "- If the prompt is already detailed, refine and enhance the existing details slightly without "
    "overcomplicating.",
    "Here are examples of how to transform or refine prompts:",
    "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round "
    "shape, sleeping peacefully on a warm sunny windowsill, surrounded by pots of blooming red "
    "flowers.",
    "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, "
    "featuring glowing street lamps, a diverse crowd of people in colorful clothing, and a "
    "double-decker bus passing by towering glass skyscrapers.",
    "Please generate only the enhanced description for the prompt below and avoid including any "
    "additional commentary or evaluations:",
    "User Prompt: ",
)
"""Lines of the prompt prefix published with the Sana checkpoints, which expect it word for word."""


class SanaTextEncoder:
    """Tokeniser and Gemma-2 stack of one checkpoint, with a bounded memory of recent prompts.

    At most `max_cached` embeddings are kept, on the stack's device; the longest takes
    `MAX_SEQUENCE_LENGTH * hidden_size` elements (1.4 MB for Gemma-2-2B in bfloat16).
    """

    def __init__(self, tokenizer: Tokenizer, stack: Gemma2Stack, *, max_cached: int = 64) -> None:
        self._tokenizer = tokenizer
        self._stack = stack
        self._max_cached = max_cached
        self._cache: OrderedDict[tuple[str, Role], Tensor] = OrderedDict()
        self._instruction = "\n".join(COMPLEX_HUMAN_INSTRUCTION)
        self._prefix: Prefix | None = None

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        variant: str | None = None,
    ) -> SanaTextEncoder:
        """Load `tokenizer/` and `text_encoder/` of a diffusers checkpoint folder.

        Raises CheckpointError naming component, file and tensor.
        """
        tokenizer = _load_tokenizer(checkpoint / "tokenizer" / "tokenizer.json")
        folder = checkpoint / "text_encoder"
        stack = Gemma2Stack.load(folder, device=device, dtype=dtype, variant=variant)
        if tokenizer.get_vocab_size() > stack.vocab_size:
            raise CheckpointError(
                f"{checkpoint / 'tokenizer' / 'tokenizer.json'}: {tokenizer.get_vocab_size()} "
                f"tokens, but {folder / 'config.json'} embeds only {stack.vocab_size}"
            )
        return cls(tokenizer, stack)

    @property
    def hidden_size(self) -> int:
        """Channels of an embedding."""
        return self._stack.hidden_size

    def encode(self, prompt: str, role: Role = "positive") -> Tensor:
        """Embeddings [tokens, hidden_size] of `prompt`, 1 <= tokens <= 300, in the stack's dtype.

        The first is BOS; what a longer prompt has beyond 300 tokens is cut off. The tensor is
        shared with later calls for the same text and must not be written to.
        """
        text = prompt.lower().strip()
        key = (text, role)
        if (known := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            return known
        embeds = self._encode_positive(text) if role == "positive" else self._encode_negative(text)
        self._cache[key] = embeds
        if len(self._cache) > self._max_cached:
            self._cache.popitem(last=False)
        return embeds

    def _encode_positive(self, text: str) -> Tensor:
        prefix = self._instruction_prefix()
        # The reference keeps position 0 and the last 299 of len(prefix) + 298, hence the prompt's
        # segment starts on the instruction's last token: its trailing space, which usually merges
        # with the prompt's first word.
        start = len(prefix.token_ids) - 1
        limit = start + MAX_SEQUENCE_LENGTH - 1
        token_ids = self._token_ids(self._instruction + text)[:limit]
        reuse = min(_common_length(token_ids, prefix.token_ids), start)
        bos = prefix.hidden_states[:1]
        if len(token_ids) <= start:
            return bos.clone()
        states = self._stack.hidden_states(token_ids, prefix, reuse)
        return torch.cat([bos, states[start - reuse :]])

    def _encode_negative(self, text: str) -> Tensor:
        token_ids = self._token_ids(text)[:MAX_SEQUENCE_LENGTH]
        return self._stack.hidden_states(token_ids).clone()

    def _instruction_prefix(self) -> Prefix:
        if self._prefix is None:
            self._prefix = self._stack.prefix(self._token_ids(self._instruction))
        return self._prefix

    def _token_ids(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(text).ids
        # Listing a whole vocabulary at load takes seconds, and a GPU does not survive a bad index.
        if (largest := max(token_ids)) >= self._stack.vocab_size:
            raise CheckpointError(
                f"tokenizer.json: has token {largest}, the text encoder embeds only "
                f"{self._stack.vocab_size}"
            )
        return token_ids


def _load_tokenizer(path: Path) -> Tokenizer:
    # The Rust library reads the file in a few milliseconds; transformers' wrapper around it
    # would add its own import and nothing that is used here.
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
        raise CheckpointError(f"{path}: must put exactly one token, BOS, around a text")
    return tokenizer


def _common_length(first: list[int], second: tuple[int, ...]) -> int:
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))
