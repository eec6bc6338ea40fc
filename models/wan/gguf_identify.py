"""What model a file holds, told from the names of its tensors and, in GGUF, its architecture.

Many converters write GGUF files, under several architecture names or none, so the tensors' names
decide; the architecture only helps to name what is not recognised. A header comes in, an `Identity`
goes out, or an error that tells someone who took the wrong file which one to take. Of other files
the names alone come in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from models.errors import UnsupportedCheckpoint
from models.wan.autoencoder_names import PREFIX as AUTOENCODER_PREFIX
from models.wan.transformer_names import PREFIXES
from models.weights.gguf.header import GgufHeader
from models.weights.gguf.metadata import shown

Naming = Literal["original", "diffusers"]


class Kind(StrEnum):
    """What is in the file; the value is what a person reads."""

    WAN_VACE = "Wan VACE transformer"
    WAN = "Wan transformer without VACE"
    VACE_MODULE = "VACE blocks only, without the transformer they belong to"
    TEXT_ENCODER = "text encoder (T5 or UMT5)"
    AUTOENCODER = "autoencoder of Wan"
    OTHER = "another model"


@dataclass(frozen=True)
class Identity:
    """`architecture` is the metadata's own word; `naming` and `prefix` only tell of Wan files.

    `naming` is that of the Wan repository ("original") or of diffusers; `prefix` stands before
    every name, and may be empty.
    """

    kind: Kind
    architecture: str | None
    naming: Naming | None
    prefix: str


_PREFIX = rf"({'|'.join(map(re.escape, PREFIXES))})?"
# To the end of the name: a LoRA's begin in the same way.
_ATTENTION = r"(self_attn|attn1)\.(?:q|k|v|o|to_q|to_k|to_v|to_out\.0)\.(?:weight|bias)$"
_TRUNK = re.compile(_PREFIX + r"blocks\.\d+\." + _ATTENTION)
_VACE = re.compile(_PREFIX + r"vace_blocks\.\d+\." + _ATTENTION)
_TEXT_ENCODER = re.compile(
    r"enc\.blk\.\d+\.attn_q\."
    r"|encoder\.block\.\d+\.layer\.0\.SelfAttention\."
    r"|blocks\.\d+\.attn\.q\."
)
# Norms called gamma: other autoencoders have the same layers without.
_AUTOENCODER = re.compile(
    rf"(?:{re.escape(AUTOENCODER_PREFIX)})?"
    r"(?:en|de)coder\.(?:middle\.\d+\.residual\.\d+|mid_block\.resnets\.\d+\.norm\d)\.gamma$"
)
_TEXT_ENCODER_ARCHITECTURES = ("t5", "t5encoder", "umt5")
_EXPECTED = "expected a Wan VACE transformer"


def identify(header: GgufHeader) -> Identity:
    """What the GGUF file with this header holds."""
    return identify_names([tensor.name for tensor in header.tensors], header.architecture)


def identify_names(names: Sequence[str], architecture: str | None = None) -> Identity:
    """What a file with tensors of these names holds. `architecture` is what it calls itself."""
    trunk = next(filter(None, map(_TRUNK.match, names)), None)
    vace = next(filter(None, map(_VACE.match, names)), None)
    block = trunk or vace
    if block is not None:
        kind = Kind.VACE_MODULE if trunk is None else Kind.WAN if vace is None else Kind.WAN_VACE
        naming: Naming = "original" if block[2] == "self_attn" else "diffusers"
        return Identity(kind, architecture, naming, block[1] or "")
    kind = Kind.OTHER
    if architecture in _TEXT_ENCODER_ARCHITECTURES or any(map(_TEXT_ENCODER.match, names)):
        kind = Kind.TEXT_ENCODER
    elif any(map(_AUTOENCODER.match, names)):
        kind = Kind.AUTOENCODER
    return Identity(kind, architecture, None, "")


def require_wan_vace(path: Path, header: GgufHeader) -> Identity:
    """The identity of a Wan VACE transformer.

    Raises UnsupportedCheckpoint, one line beginning with `path`, for everything else.
    """
    identity = identify(header)
    if identity.kind is Kind.WAN_VACE:
        return identity
    if not header.tensors:
        found = "the file holds no tensors"
    elif identity.kind is Kind.WAN:
        found = "the file holds a Wan transformer without VACE blocks"
    elif identity.kind is Kind.VACE_MODULE:
        found = "the file holds VACE blocks alone, no 'blocks.0' of the transformer around them"
    elif identity.kind is Kind.TEXT_ENCODER:
        found = "the file holds a text encoder (T5 or UMT5), which belongs beside the transformer"
    elif identity.kind is Kind.AUTOENCODER:
        found = "the file holds an autoencoder of Wan, which is read from safetensors or .pth alone"
    elif identity.architecture is not None:
        found = f"the file holds a model of architecture {shown(identity.architecture)}"
    else:
        found = f"the file holds an unknown model with tensors like {shown(header.tensors[0].name)}"
    raise UnsupportedCheckpoint(f"{path}: {found}, {_EXPECTED}")
