"""What a Sana transformer is told of the prompts, as a value computed once per request.

`TextConditioning` holds every layer's text keys and values. Like `models.time_modulation` it can be
cut and joined along the batch, so that requests share a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TextConditioning:
    """Text keys and values of all cross-attention layers for a batch of prompts.

    `key_values` has shape [B, layers, 2, T, heads, head_dim], keys before values, in the dtype and
    on the device of the transformer; T is the longest prompt of the batch. `lengths` says how many
    of the T tokens each prompt has; those beyond are zero. `bias` is what attention adds to its
    scores, [B, 1, 1, T] of zero or minus infinity, or None when no prompt is padded.
    """

    key_values: Tensor
    lengths: tuple[int, ...]
    bias: Tensor | None

    @classmethod
    def of(cls, key_values: Tensor, lengths: Sequence[int]) -> Self:
        """Join keys and values [B, layers, 2, T, heads, head_dim] with the prompts' lengths.

        Raises ValueError when `lengths` does not fit: one per prompt, each 1..T, the longest T.
        """
        batch, longest = key_values.shape[0], key_values.shape[3]
        if len(lengths) != batch or min(lengths) < 1 or max(lengths) != longest:
            raise ValueError(f"lengths {tuple(lengths)} do not fit {batch} prompts of {longest}")
        bias = None
        if min(lengths) < longest:
            kept = torch.tensor(lengths, device=key_values.device)[:, None]
            is_padding = torch.arange(longest, device=key_values.device) >= kept
            bias = torch.zeros(batch, longest, dtype=key_values.dtype, device=key_values.device)
            bias = bias.masked_fill(is_padding, float("-inf"))[:, None, None]
        return cls(key_values, tuple(lengths), bias)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Join batches, padding to the longest prompt. Padding does not change any result."""
        longest = max(part.key_values.shape[3] for part in parts)
        padded = [
            F.pad(part.key_values, (0, 0, 0, 0, 0, longest - part.key_values.shape[3]))
            for part in parts
        ]
        return cls.of(torch.cat(padded), [n for part in parts for n in part.lengths])

    def index(self, rows: Sequence[int]) -> Self:
        """The prompts at `rows`, in that order; a row may be taken several times."""
        lengths = [self.lengths[row] for row in rows]
        selected = self.key_values[torch.tensor(rows, device=self.key_values.device)]
        return type(self).of(selected[:, :, :, : max(lengths)], lengths)
