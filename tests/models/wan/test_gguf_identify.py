"""What a file is: told from its tensors' names, whatever the architecture field says."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import UnsupportedCheckpoint
from models.wan.gguf_identify import Kind, identify, require_wan_vace
from models.wan.transformer_names import PREFIXES
from models.weights.gguf.format import ARCHITECTURE_KEY, QuantType
from models.weights.gguf.header import GgufHeader
from models.weights.gguf.tensor_records import TensorInfo

VACE_FILE = Path("f.gguf")
TRUNK = ["patch_embedding.weight", "blocks.0.self_attn.q.weight", "blocks.0.modulation"]
VACE = ["vace_patch_embedding.weight", "vace_blocks.0.self_attn.q.weight"]
DIFFUSERS = ["blocks.0.attn1.to_q.weight", "vace_blocks.0.attn1.to_q.weight"]


def header_of(names: list[str], architecture: str | int | None = None) -> GgufHeader:
    metadata = {} if architecture is None else {ARCHITECTURE_KEY: architecture}
    tensors = tuple(TensorInfo(name, (1,), QuantType.F32, 0, 4) for name in names)
    return GgufHeader(3, metadata, tensors, 0, 32)


@pytest.mark.parametrize("architecture", ["wan", "pig", None])
def test_the_names_tell_a_wan_vace_transformer(architecture: str | None) -> None:
    header = header_of(TRUNK + VACE, architecture)
    identity = require_wan_vace(VACE_FILE, header)
    assert identity.kind is Kind.WAN_VACE
    assert (identity.naming, identity.prefix) == ("original", "")
    assert identity.architecture == architecture


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_told_apart(prefix: str) -> None:
    header = header_of([prefix + name for name in TRUNK + VACE], "wan")
    assert require_wan_vace(VACE_FILE, header).prefix == prefix


def test_names_of_diffusers_are_told_apart() -> None:
    assert require_wan_vace(VACE_FILE, header_of(DIFFUSERS)).naming == "diffusers"


WRONG: dict[str, tuple[GgufHeader, Kind, str]] = {
    "no tensors": (header_of([], "wan"), Kind.OTHER, "holds no tensors"),
    "no VACE blocks": (header_of(TRUNK, "wan"), Kind.WAN, "Wan transformer without VACE blocks"),
    "no trunk": (header_of(VACE, "wan"), Kind.VACE_MODULE, "VACE blocks alone, no 'blocks.0'"),
    "no trunk, diffusers": (header_of(DIFFUSERS[1:]), Kind.VACE_MODULE, "VACE blocks alone"),
    "umt5": (
        header_of(["token_embd.weight", "enc.blk.0.attn_q.weight"], "t5encoder"),
        Kind.TEXT_ENCODER,
        r"text encoder \(T5 or UMT5\)",
    ),
    "umt5 without an architecture": (
        header_of(["enc.blk.3.attn_q.weight"]),
        Kind.TEXT_ENCODER,
        "text encoder",
    ),
    "umt5 with names of transformers": (
        header_of(["encoder.block.0.layer.0.SelfAttention.q.weight"], "other"),
        Kind.TEXT_ENCODER,
        "text encoder",
    ),
    "umt5 of the original release": (
        header_of(["token_embedding.weight", "blocks.0.attn.q.weight"]),
        Kind.TEXT_ENCODER,
        "text encoder",
    ),
    "an autoencoder": (
        header_of(["decoder.middle.0.residual.0.gamma"]),
        Kind.AUTOENCODER,
        "an autoencoder of Wan, which is read from safetensors",
    ),
    "an autoencoder with names of diffusers": (
        header_of(["encoder.mid_block.resnets.1.norm2.gamma"], "wan"),
        Kind.AUTOENCODER,
        "an autoencoder of Wan",
    ),
    "an autoencoder of another model": (
        header_of(["encoder.mid_block.resnets.1.norm2.weight"]),
        Kind.OTHER,
        "an unknown model",
    ),
    "a LoRA": (
        header_of(["diffusion_model.blocks.0.self_attn.q.lora_down.weight"]),
        Kind.OTHER,
        "an unknown model",
    ),
    "another architecture": (
        header_of(["double_blocks.0.img_attn.qkv.weight"], "flux"),
        Kind.OTHER,
        "a model of architecture 'flux'",
    ),
    "a hostile architecture": (
        header_of(["x"], "\x1b[31m\n"),
        Kind.OTHER,
        r"architecture '\\x1b\[31m\\n'",
    ),
    "an unknown model": (header_of(["x.weight"]), Kind.OTHER, "with tensors like 'x.weight'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_any_other_file_is_refused_by_what_it_is(case: str) -> None:
    header, kind, message = WRONG[case]
    assert identify(header).kind is kind
    with pytest.raises(UnsupportedCheckpoint, match=message) as caught:
        require_wan_vace(VACE_FILE, header)
    assert str(caught.value).startswith("f.gguf: ")
    assert str(caught.value).endswith(", expected a Wan VACE transformer")
    assert str(caught.value).isprintable()


def test_a_text_encoder_is_not_a_transformer_for_its_blocks_alone() -> None:
    # Both have `blocks.N`; only the names of their attentions differ.
    assert identify(header_of(["blocks.0.attn.q.weight", "blocks.0.ffn.fc1.weight"])).naming is None
