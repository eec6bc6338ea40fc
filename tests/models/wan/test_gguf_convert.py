"""From safetensors in every naming to one and the same GGUF file."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from models.errors import CheckpointError, UnsupportedCheckpoint
from models.wan.gguf_convert import convert_to_gguf
from models.wan.gguf_identify import Kind, identify
from models.wan.transformer_config import expected_shapes
from models.weights.gguf.dequantize import dequantize
from models.weights.gguf.file import GgufFile
from models.weights.gguf.file_type import FileType
from models.weights.gguf.format import QuantType
from tests.models.wan.scaled_files import scaled_fp8
from tests.models.wan.wan_files import CONFIG

DIFFUSERS = {
    "self_attn": "attn1",
    "cross_attn": "attn2",
    ".q.": ".to_q.",
    ".k.": ".to_k.",
    ".v.": ".to_v.",
    ".o.": ".to_out.0.",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "norm3": "norm2",
    "before_proj": "proj_in",
    "after_proj": "proj_out",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "modulation": "scale_shift_table",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
}


def diffusers_name(name: str) -> str:
    for original, theirs in DIFFUSERS.items():
        name = name.replace(original, theirs)
    return name


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """A tiny transformer's tensors under original names, bfloat16."""
    random = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(shape, generator=random) * 0.02).bfloat16()
        for name, shape in expected_shapes(CONFIG).items()
    }


@pytest.fixture
def source(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    return path


def test_a_file_holds_every_tensor_as_its_type_can(tmp_path, source, weights):
    calls = []
    result = convert_to_gguf(
        source, tmp_path / "a.gguf", FileType.Q4_K_M, progress=lambda *call: calls.append(call)
    )
    with GgufFile.open(tmp_path / "a.gguf") as file:
        assert identify(file.header).kind is Kind.WAN_VACE
        assert {name: info.shape for name, info in file.tensors.items()} == expected_shapes(CONFIG)
        assert file.tensors["blocks.1.ffn.2.weight"].type is QuantType.Q6_K
        assert file.tensors["patch_embedding.weight"].type is QuantType.F32
        for name, info in file.tensors.items():
            found = dequantize(file.raw(name), info.type).view(info.shape)
            expected = weights[name].float()
            error = (found - expected).norm() / expected.norm()
            # F32 and F16 hold these bfloat16 numbers, but for F16's denormals.
            assert error < (1e-4 if info.type in (QuantType.F32, QuantType.F16) else 0.08), name
    total = sum(tensor.numel() for tensor in weights.values())
    assert calls[-1] == (total, total)
    assert result.source_bytes == 2 * total
    assert result.file_bytes == (tmp_path / "a.gguf").stat().st_size
    assert sum(result.types.values()) == len(weights)


@pytest.mark.parametrize(
    "naming", ["prefix", "diffusers", "shards", "no index", "folded", "pipeline folder"]
)
def test_naming_and_shards_do_not_show_in_the_file(tmp_path, source, weights, naming):
    folder = tmp_path / "model"
    folder.mkdir()
    given = folder
    stem = "diffusion_pytorch_model"
    if naming == "prefix":
        given = folder / "model.safetensors"
        save_file({f"model.diffusion_model.{k}": v for k, v in weights.items()}, given)
    elif naming == "folded":
        shapes = {"modulation": (-1, CONFIG.dim), "patch_embedding.weight": (-1, 1, 2, 2)}
        given = folder / "model.safetensors"
        save_file(
            {
                name: tensor.reshape(
                    next((s for e, s in shapes.items() if name.endswith(e)), tensor.shape)
                )
                for name, tensor in weights.items()
            },
            given,
        )
    elif naming in ("shards", "no index"):
        names = list(weights)
        shards = {f"{stem}-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
        for shard, members in shards.items():
            save_file({name: weights[name] for name in members}, folder / shard)
        index = {name: shard for shard, members in shards.items() for name in members}
        if naming == "shards":
            file = folder / f"{stem}.safetensors.index.json"
            file.write_text(json.dumps({"weight_map": index}))
        else:
            # The model's other parts, and what was made of it before.
            vae = {"encoder.middle.0.residual.0.gamma": torch.zeros(1)}
            save_file(vae, folder / "wan_2.1_vae.safetensors")
            (folder / "model-Q8_0.gguf").write_bytes(b"GGUF")
        # The original release's own, which says nothing that is needed.
        (folder / "config.json").write_text(json.dumps({"model_type": "vace", "dim": 256}))
    else:
        inner = folder / "transformer" if naming == "pipeline folder" else folder
        inner.mkdir(exist_ok=True)
        renamed = {diffusers_name(k): v for k, v in weights.items()}
        save_file(renamed, inner / f"{stem}.safetensors")
    convert_to_gguf(source, tmp_path / "a.gguf", FileType.Q8_0)
    convert_to_gguf(given, tmp_path / "b.gguf", FileType.Q8_0)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_heads_of_another_width_are_told_by_the_configuration_beside_the_file(tmp_path, weights):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    config = {
        "num_attention_heads": 8,
        "attention_head_dim": 32,
        "ffn_dim": CONFIG.ffn_dim,
        "num_layers": CONFIG.num_layers,
        "vace_layers": list(CONFIG.vace_layers),
        "text_dim": CONFIG.text_dim,
        "freq_dim": CONFIG.freq_dim,
    }
    (folder / "config.json").write_text(json.dumps(config))
    convert_to_gguf(folder, tmp_path / "a.gguf", FileType.Q4_K_S)
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": 5}))
    with pytest.raises(CheckpointError, match=r"lacks tensor 'blocks\.4\.modulation'"):
        convert_to_gguf(folder, tmp_path / "b.gguf", FileType.Q4_K_S)
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    with pytest.raises(UnsupportedCheckpoint, match=r"config\.json: hidden_act: unknown option"):
        convert_to_gguf(folder, tmp_path / "b.gguf", FileType.Q4_K_S)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=rf"^{folder}/config\.json: not valid JSON"):
        convert_to_gguf(folder, tmp_path / "b.gguf", FileType.Q4_K_S)


def test_what_is_no_whole_transformer_is_refused_and_nothing_left(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    target = tmp_path / "a.gguf"

    def refused(tensors, error, match):
        save_file(tensors, path)
        with pytest.raises(error, match=match):
            convert_to_gguf(path, target, FileType.Q4_K_M)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    module = {k: v for k, v in weights.items() if not k.startswith("blocks.")}
    refused(module, UnsupportedCheckpoint, r"model\.safetensors: VACE blocks only")
    plain = {k: v for k, v in weights.items() if "vace" not in k}
    refused(plain, UnsupportedCheckpoint, "a Wan transformer without VACE")
    holed = {k: v for k, v in weights.items() if k != "blocks.2.ffn.0.bias"}
    refused(holed, CheckpointError, r"lacks tensor 'blocks\.2\.ffn\.0\.bias' of the architecture")
    more = weights | {"blocks.0.extra.weight": torch.zeros(2)}
    refused(more, CheckpointError, r"'blocks\.0\.extra\.weight' is unknown to the architecture")
    odd = weights | {"blocks.0.ffn.0.bias": torch.zeros(7)}
    refused(odd, CheckpointError, r"'blocks\.0\.ffn\.0\.bias' has shape \[7\], expected \[512\]")
    name = "blocks.1.ffn.0.weight"
    infinite = weights | {name: torch.full_like(weights[name], torch.inf)}
    refused(infinite, CheckpointError, r"'blocks\.1\.ffn\.0\.weight': Q4_K holds finite numbers")
    doubled = weights | {f"model.diffusion_model.{name}": weights[name].clone()}
    refused(doubled, CheckpointError, r"are both 'blocks\.1\.ffn\.0\.weight'")


def test_numbers_in_scaled_8_bit_floats_are_read(tmp_path, weights):
    scaled, meant = scaled_fp8(weights, lambda name: "blocks." in name, "scale_weight")
    save_file(scaled, tmp_path / "scaled.safetensors")
    save_file(meant, tmp_path / "meant.safetensors")
    for name in ("scaled", "meant"):
        convert_to_gguf(
            tmp_path / f"{name}.safetensors", tmp_path / f"{name}.gguf", FileType.Q4_K_M
        )
    assert (tmp_path / "scaled.gguf").read_bytes() == (tmp_path / "meant.gguf").read_bytes()


def test_a_folder_without_a_transformer_names_the_files_it_has(tmp_path):
    save_file({"vision_model.a.weight": torch.zeros(1)}, tmp_path / "clip_vision_h.safetensors")
    with pytest.raises(CheckpointError, match=r"found: none \(other files: clip_vision_h\.safe"):
        convert_to_gguf(tmp_path, tmp_path / "a.gguf", FileType.Q8_0)


def test_a_source_that_is_no_safetensors_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.gguf: is a GGUF file, expected safetensors"):
        convert_to_gguf(tmp_path / "a.gguf", tmp_path / "b.gguf", FileType.Q8_0)
    with pytest.raises(CheckpointError, match="nothing: no such file or folder"):
        convert_to_gguf(tmp_path / "nothing", tmp_path / "b.gguf", FileType.Q8_0)
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match="damaged or truncated safetensors"):
        convert_to_gguf(tmp_path / "text.safetensors", tmp_path / "b.gguf", FileType.Q8_0)
