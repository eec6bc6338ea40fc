"""The names of a Wan-VACE transformer's tensors: every form in use to that of the original release.

Files come in three: original names, the same behind a prefix that some tools put there, and those
of diffusers, which also calls the second norm of a block the third and the third the second.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""What converters put before the names of a diffusion model's tensors."""

# Whole stems outside of the blocks. `scale_shift_table` and `proj_out` mean other things inside.
_TOP_LEVEL = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}
_IN_BLOCK = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    # The affine norm, which is before cross-attention; the others hold no tensors.
    "norm2": "norm3",
    "proj_in": "before_proj",
    "proj_out": "after_proj",
}
_IN_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}


def to_original(name: str) -> str:
    """The original name of a tensor; a name that is already original, or unknown, stays.

    >>> to_original("blocks.3.attn2.to_out.0.bias")
    'blocks.3.cross_attn.o.bias'
    >>> to_original("model.diffusion_model.head.modulation")
    'head.modulation'
    """
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    if name == "scale_shift_table":
        return "head.modulation"
    stem, _, kind = name.rpartition(".")
    if not stem.startswith(("blocks.", "vace_blocks.")):
        return f"{_TOP_LEVEL.get(stem, stem)}.{kind}" if stem else name
    if stem.count(".") == 1:
        return f"{stem}.modulation" if kind == "scale_shift_table" else name
    blocks, index, part = stem.split(".", 2)
    attention, _, projection = part.partition(".")
    if attention in ("attn1", "attn2"):
        part = f"{_IN_BLOCK[attention]}.{_IN_ATTENTION.get(projection, projection)}"
    else:
        part = _IN_BLOCK.get(part, part)
    return f"{blocks}.{index}.{part}.{kind}"


def to_diffusers(name: str) -> str:
    """The name that diffusers gives the tensor whose original name is `name`.

    >>> to_diffusers("blocks.3.norm3.weight")
    'blocks.3.norm2.weight'
    """
    if name == "head.modulation":
        return "scale_shift_table"
    stem, _, kind = name.rpartition(".")
    if not stem.startswith(("blocks.", "vace_blocks.")):
        return f"{_reversed(_TOP_LEVEL).get(stem, stem)}.{kind}"
    if stem.count(".") == 1:
        return f"{stem}.scale_shift_table"
    blocks, index, part = stem.split(".", 2)
    attention, _, projection = part.partition(".")
    if projection and attention in ("self_attn", "cross_attn"):
        projection = _reversed(_IN_ATTENTION).get(projection, projection)
        part = f"{_reversed(_IN_BLOCK)[attention]}.{projection}"
    else:
        part = _reversed(_IN_BLOCK).get(part, part)
    return f"{blocks}.{index}.{part}.{kind}"


def _reversed(names: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in names.items()}
