"""The Gemma-2 decoder stack of Sana's text encoder: token ids in, last hidden states out.

The forward pass is transformers' `Gemma2Model` (Gemma Team, arXiv:2408.00118), loaded strictly from
its component folder and run causally on the real tokens of one text at a time. The library is
imported when a stack is loaded, not with this module, because its import costs more than torch's.
A `Prefix` holds the keys and values of a constant beginning, so that a text which starts with it
costs only its remaining tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.errors import CheckpointError, UnsupportedCheckpoint
from models.weights.json_file import read_json_object
from models.weights.safetensors_folder import load_module
from models.weights.skeleton import skeleton

if TYPE_CHECKING:
    from transformers import Cache, Gemma2Model


@dataclass(frozen=True)
class Prefix:
    """Tokens with the attention state behind them.

    `keys` and `values` hold one tensor [1, heads, len(token_ids), head_dim] per layer;
    `hidden_states` is [len(token_ids), hidden_size], the stack's output at these positions.
    """

    token_ids: tuple[int, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    hidden_states: Tensor


class Gemma2Stack:
    """A resident Gemma-2 decoder without its language-model head."""

    def __init__(self, model: Gemma2Model) -> None:
        self._model = model
        self.hidden_size: int = model.config.hidden_size
        self.vocab_size: int = model.config.vocab_size
        self.device = model.device
        self.dtype = model.dtype

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
        from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
        from transformers.models.gemma2.modeling_gemma2 import Gemma2Model, Gemma2RotaryEmbedding

        try:
            config = Gemma2Config.from_dict(config_json)
            with skeleton():
                model = Gemma2Model(config)
        except Exception as error:  # an unsound size surfaces as whatever it breaks first
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{config_path}: no Gemma-2 configuration: {reason}") from error
        load_module(model, folder, device=device, dtype=dtype, variant=variant)
        # Neither buffer is part of a checkpoint, so both still lie on the meta device.
        embedding = model.embed_tokens
        embedding.embed_scale = torch.tensor(embedding.scalar_embed_scale, device=device)
        model.rotary_emb = Gemma2RotaryEmbedding(config).to(device)
        return cls(model)

    @torch.inference_mode()
    def prefix(self, token_ids: Sequence[int]) -> Prefix:
        """Run `token_ids` once and keep what later texts that start with them need."""
        cache = self._empty_cache()
        hidden_states = self._forward(token_ids, cache)
        return Prefix(
            token_ids=tuple(token_ids),
            keys=tuple(layer.keys for layer in cache.layers),
            values=tuple(layer.values for layer in cache.layers),
            hidden_states=hidden_states,
        )

    @torch.inference_mode()
    def hidden_states(
        self, token_ids: Sequence[int], prefix: Prefix | None = None, reuse: int = 0
    ) -> Tensor:
        """Last hidden states [len(token_ids) - reuse, hidden_size] from position `reuse` on.

        The first `reuse` tokens must equal the prefix's. Equal to running the whole text up to the
        rounding of the matrix products involved.
        """
        cache = self._empty_cache()
        if prefix is not None:
            for index, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
                cache.update(keys[:, :, :reuse], values[:, :, :reuse], index)
        return self._forward(token_ids[reuse:], cache)

    def _empty_cache(self) -> Cache:
        from transformers import DynamicCache

        # Without the config every layer keeps all keys, also those with a sliding window, so that
        # the prefix can be cut anywhere; the window is applied by the attention mask.
        return DynamicCache()

    def _forward(self, token_ids: Sequence[int], cache: Cache) -> Tensor:
        input_ids = torch.tensor([list(token_ids)], dtype=torch.long, device=self.device)
        output = self._model(input_ids=input_ids, past_key_values=cache, use_cache=True)
        return output.last_hidden_state[0]
