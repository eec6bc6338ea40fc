"""The names of a UMT5 encoder's tensors: every form in use to that of transformers.

Files come in three: the names of transformers, those of Wan's own release, and those that
llama.cpp gives in GGUF files. What belongs to a decoder, which Wan has no use for, is told apart.
"""

from __future__ import annotations

import re

UNUSED = ("decoder.", "lm_head.", "dec.", "output.weight", "spiece_model")
"""How the names begin of what complete models and some encoder files hold besides the encoder."""

_WHOLE = {
    "encoder.embed_tokens.weight": "shared.weight",
    "token_embedding.weight": "shared.weight",
    "token_embd.weight": "shared.weight",
    "norm.weight": "encoder.final_layer_norm.weight",
    "enc.output_norm.weight": "encoder.final_layer_norm.weight",
}
_IN_BLOCK = re.compile(r"(?:blocks|enc\.blk)\.(\d+)\.(.+)\.weight")
_PARTS = {
    "layer.0.layer_norm": ("norm1", "attn_norm"),
    "layer.0.SelfAttention.q": ("attn.q", "attn_q"),
    "layer.0.SelfAttention.k": ("attn.k", "attn_k"),
    "layer.0.SelfAttention.v": ("attn.v", "attn_v"),
    "layer.0.SelfAttention.o": ("attn.o", "attn_o"),
    "layer.0.SelfAttention.relative_attention_bias": ("pos_embedding.embedding", "attn_rel_b"),
    "layer.1.layer_norm": ("norm2", "ffn_norm"),
    "layer.1.DenseReluDense.wi_0": ("ffn.gate.0", "ffn_gate"),
    "layer.1.DenseReluDense.wi_1": ("ffn.fc1", "ffn_up"),
    "layer.1.DenseReluDense.wo": ("ffn.fc2", "ffn_down"),
}
_TO_PART = {name: part for part, names in _PARTS.items() for name in names}


def to_transformers(name: str) -> str:
    """The name that transformers has for a tensor; one that is already so, or unknown, stays.

    >>> to_transformers("blocks.3.ffn.gate.0.weight")
    'encoder.block.3.layer.1.DenseReluDense.wi_0.weight'
    >>> to_transformers("enc.blk.0.attn_rel_b.weight")
    'encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
    """
    if (match := _IN_BLOCK.fullmatch(name)) is not None and match[2] in _TO_PART:
        return f"encoder.block.{match[1]}.{_TO_PART[match[2]]}.weight"
    return _WHOLE.get(name, name)
