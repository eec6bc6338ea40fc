"""The resident Gemma-2 stack of Sana's text encoder: loaded strictly, run on real tokens only.

A `Prefix` holds the attention state of a constant beginning, so that a text which starts with it
costs only its remaining tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.errors import UnsupportedCheckpoint
from models.sana.gemma2_layers import Gemma2, Gemma2Config, State
from models.weights.json_file import read_json_object
from models.weights.safetensors_folder import load_module
from models.weights.skeleton import skeleton


@dataclass(frozen=True)
class Prefix:
    """Tokens with the attention state behind them.

    `states` holds keys and values [key-value heads, len(token_ids), head_dim] of every layer;
    `hidden_states` is [len(token_ids), hidden_size], the stack's output at these positions.
    """

    token_ids: tuple[int, ...]
    states: tuple[State, ...]
    hidden_states: Tensor


class Gemma2Stack:
    """A resident Gemma-2 decoder without its language-model head."""

    def __init__(self, model: Gemma2) -> None:
        self._model = model
        self.hidden_size = model.config.hidden_size
        self.vocab_size = model.config.vocab_size
        self.device = model.norm.weight.device
        self.dtype = model.norm.weight.dtype

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        variant: str | None = None,
    ) -> Gemma2Stack:
        """The stack in `folder` (config.json and safetensors), frozen.

        `dtype` is float32 or bfloat16: Gemma's activations overflow float16. Raises CheckpointError
        naming file and tensor, UnsupportedCheckpoint when the config describes another model.
        """
        config_path = folder / "config.json"
        config_json = read_json_object(config_path)
        if config_json.get("model_type") != "gemma2":
            raise UnsupportedCheckpoint(
                f"{config_path}: model_type is {config_json.get('model_type')!r}, "
                "supported: 'gemma2'"
            )
        try:
            config = Gemma2Config.from_json(config_json)
        except ValueError as error:
            raise UnsupportedCheckpoint(f"{config_path}: {error}") from error
        with skeleton():
            model = Gemma2(config)
        load_module(model, folder, device=device, dtype=dtype, variant=variant)
        return cls(model)

    @torch.inference_mode()
    def prefix(self, token_ids: Sequence[int]) -> Prefix:
        """Run `token_ids` once and keep what later texts that start with them need."""
        hidden_states, states = self._forward(token_ids, None)
        return Prefix(tuple(token_ids), states, hidden_states)

    @torch.inference_mode()
    def hidden_states(
        self, token_ids: Sequence[int], prefix: Prefix | None = None, reuse: int = 0
    ) -> Tensor:
        """Last hidden states [len(token_ids) - reuse, hidden_size] from position `reuse` on.

        The first `reuse` tokens must equal the prefix's. Equal to running the whole text up to the
        rounding of the matrix products involved.
        """
        past = None
        if prefix is not None and reuse > 0:
            past = [(keys[:, :reuse], values[:, :reuse]) for keys, values in prefix.states]
        return self._forward(token_ids[reuse:], past)[0]

    def _forward(
        self, token_ids: Sequence[int], past: Sequence[State] | None
    ) -> tuple[Tensor, tuple[State, ...]]:
        return self._model(torch.tensor(token_ids, dtype=torch.long, device=self.device), past)
