"""What a Wan transformer is told about the text, as values computed once per request.

Prompts come in as text encoder states of their true length. Wan was trained with prompts padded by
zeros to a fixed length, and without a mask, so the padding takes part in attention. All padding
tokens have the same key and value: one column whose score is raised by the logarithm of their
number stands for all of them, exactly, at a fraction of the memory and the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# A bias of bfloat16 is up to 1.6 % off in what it multiplies; a second column makes up for what the
# first one lacks, which leaves 0.03 %.
_PADDING_COLUMNS = 2


@dataclass(frozen=True)
class TextConditioning:
    """Text keys and values of all cross-attention layers for a batch of prompts.

    `key_values` has shape [B, layers, 2, T, heads, head_dim], keys before values, in the dtype and
    on the device of the transformer, the layers of the trunk before those of VACE. `bias` [B, 1, 1,
    T] is what attention adds to its scores: zero for a token, the logarithm of a number of tokens
    for padding, minus infinity for a column that is not in use.
    """

    key_values: Tensor
    bias: Tensor

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Join batches. Columns that are added to the shorter ones do not change any result."""
        longest = max(part.bias.shape[-1] for part in parts)
        key_values, biases = [], []
        for part in parts:
            added = longest - part.bias.shape[-1]
            key_values.append(F.pad(part.key_values, (0, 0, 0, 0, 0, added)))
            biases.append(F.pad(part.bias, (0, added), value=float("-inf")))
        return cls(torch.cat(key_values), torch.cat(biases))

    def index(self, rows: Sequence[int]) -> Self:
        """The prompts at `rows`, in that order; a row may be taken several times."""
        selected = torch.tensor(rows, device=self.bias.device)
        return type(self)(self.key_values[selected], self.bias[selected])


def pad_prompts(
    prompts: Sequence[Tensor], text_len: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Prompts, each [n, C], to text [B, T, C] and attention bias [B, 1, 1, T], both in `dtype`.

    T is the longest n and the columns of padding. Raises ValueError when a prompt is longer than
    `text_len`.
    """
    lengths = [len(prompt) for prompt in prompts]
    if max(lengths) > text_len:
        raise ValueError(f"a prompt has {max(lengths)} tokens, expected at most {text_len}")
    text = pad_sequence([prompt.to(dtype) for prompt in prompts], batch_first=True)
    text = F.pad(text, (0, 0, 0, _PADDING_COLUMNS))
    columns = text.shape[1]
    rows = []
    for length in lengths:
        padding = _padding_biases(text_len - length, dtype)
        unused = columns - length - len(padding)
        rows.append([0.0] * length + padding + [float("-inf")] * unused)
    bias = torch.tensor(rows, dtype=dtype, device=text.device)
    return text, bias[:, None, None]


def _padding_biases(count: int, dtype: torch.dtype) -> list[float]:
    """Biases of `dtype` whose exponentials add up to `count`."""
    biases = []
    rest = float(count)
    for _ in range(_PADDING_COLUMNS):
        bias = torch.tensor(math.log(rest) if rest > 0 else float("-inf"), dtype=torch.float64)
        rounded = bias.to(dtype)
        if rounded > bias:
            rounded = torch.nextafter(rounded, torch.tensor(float("-inf"), dtype=dtype))
        biases.append(rounded.item())
        rest -= math.exp(biases[-1])
    return biases
