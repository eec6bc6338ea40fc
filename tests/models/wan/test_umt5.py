"""The UMT5 encoder against that of transformers, from every kind of file."""

from __future__ import annotations

import json

import gguf
import pytest
import torch
from safetensors.torch import save_file
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from models.errors import CheckpointError, UnsupportedCheckpoint
from models.wan.umt5 import Umt5Encoder
from models.wan.umt5_layers import position_buckets
from models.weights.gguf.packed_tensor import PackedTensor
from models.weights.packed.linear import PackedLinear
from tests.models.runs import relative_error
from tests.models.wan.scaled_files import scaled_fp8, text_tensor
from tests.models.wan.tiny_umt5 import (
    VOCABULARY,
    make_reference,
    renamed,
    transformers_weights,
    write_gguf,
)

# Rounding of float32 matrix products in another order.
TOLERANCE = 1e-5
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reference():
    return make_reference()


@pytest.fixture(scope="module")
def weights(reference):
    return transformers_weights(reference)


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("umt5") / "text_encoder"
    reference.save_pretrained(path)
    return path


def load(path, dtype=torch.float32):
    return Umt5Encoder.load(path, device=CPU, dtype=dtype)


def some_tokens(length):
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def padded_run(model, tokens, length):
    ids, mask = torch.zeros(2, 1, length, dtype=torch.long)
    ids[0, : len(tokens)], mask[0, : len(tokens)] = tokens, 1
    return model(input_ids=ids, attention_mask=mask).last_hidden_state[0, : len(tokens)]


@pytest.mark.parametrize("length", [1, 2, 7, 150, 512])
def test_real_tokens_alone_equal_a_padded_and_masked_reference(reference, folder, length):
    tokens = some_tokens(length)
    ours = load(folder).hidden_states(tokens.tolist())
    theirs = padded_run(reference, tokens, 512)
    assert ours.shape == theirs.shape
    assert relative_error(ours, theirs) <= TOLERANCE


def test_the_comparison_would_notice_a_bias_shared_by_all_layers(reference, weights, tmp_path):
    first = weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    shared = {
        name: first.clone() if "relative_attention_bias" in name else tensor
        for name, tensor in weights.items()
    }
    save_file(shared, tmp_path / "umt5.safetensors")
    tokens = some_tokens(30)
    ours = load(tmp_path / "umt5.safetensors").hidden_states(tokens.tolist())
    assert relative_error(ours, padded_run(reference, tokens, 30)) > 100 * TOLERANCE


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 40), (4, 128)])
def test_buckets_equal_the_reference_at_every_distance(buckets, distance):
    config = make_reference(
        relative_attention_num_buckets=buckets, relative_attention_max_distance=distance
    ).config
    attention = UMT5Attention(config, has_relative_attention_bias=True)
    positions = torch.arange(600)
    expected = attention._relative_position_bucket(positions[None] - positions[:, None])
    assert torch.equal(position_buckets(600, buckets, distance), expected)


@torch.no_grad()
def test_bfloat16_is_as_near_to_float32_as_the_reference_is(folder):
    tokens = some_tokens(40)
    exact = load(folder).hidden_states(tokens.tolist())
    low = load(folder, torch.bfloat16).hidden_states(tokens.tolist())
    assert low.dtype == torch.bfloat16
    reference = make_reference().bfloat16()(input_ids=tokens[None]).last_hidden_state[0]
    # The two round at other places: three percent either way, after six additions.
    assert relative_error(low.float(), exact) <= 1.5 * relative_error(reference.float(), exact)


def test_float16_is_refused_because_large_models_overflow_it(folder):
    with pytest.raises(ValueError, match=r"dtype is torch.float16, UMT5 runs in"):
        load(folder, torch.float16)


def test_shards_and_a_second_name_of_the_table_make_no_difference(reference, folder, tmp_path):
    tokens = some_tokens(20).tolist()
    expected = load(folder).hidden_states(tokens)
    reference.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert torch.equal(load(tmp_path / "shards").hidden_states(tokens), expected)
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    state["encoder.embed_tokens.weight"] = state["shared.weight"].clone()
    save_file(state, tmp_path / "both.safetensors")
    assert torch.equal(load(tmp_path / "both.safetensors").hidden_states(tokens), expected)


@pytest.mark.parametrize(("suffix", "save"), [(".safetensors", save_file), (".pth", torch.save)])
def test_the_original_release_loads_without_a_configuration(
    weights, folder, tmp_path, suffix, save
):
    path = tmp_path / f"models_t5_umt5-xxl-enc-bf16{suffix}"
    save(renamed(weights, "wan"), path)
    tokens = some_tokens(20).tolist()
    assert torch.equal(load(path).hidden_states(tokens), load(folder).hidden_states(tokens))


def test_decoders_and_embedded_tokenizers_are_passed_over(weights, folder, tmp_path):
    extra = {
        "decoder.block.0.layer.0.layer_norm.weight": torch.ones(32),
        "lm_head.weight": torch.ones(VOCABULARY, 32),
        "spiece_model": torch.zeros(99, dtype=torch.uint8),
    }
    save_file({**weights, **extra}, tmp_path / "umt5.safetensors")
    tokens = some_tokens(20).tolist()
    found = load(tmp_path / "umt5.safetensors").hidden_states(tokens)
    assert torch.equal(found, load(folder).hidden_states(tokens))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16", "F32"])
@pytest.mark.parametrize("architecture", ["t5", "t5encoder"])
def test_gguf_equals_safetensors_of_its_numbers(weights, tmp_path, kind, architecture):
    path = tmp_path / "umt5-xxl-encoder.gguf"
    stored = write_gguf(path, weights, gguf.GGMLQuantizationType[kind], architecture)
    save_file(stored, tmp_path / "umt5.safetensors")
    tokens = some_tokens(20).tolist()
    expected = load(tmp_path / "umt5.safetensors").hidden_states(tokens)
    assert relative_error(load(path).hidden_states(tokens), expected) <= TOLERANCE


def test_quantised_matrices_and_the_table_stay_packed(weights, tmp_path):
    path = tmp_path / "umt5-xxl-encoder.gguf"
    write_gguf(path, weights)
    encoder = load(path, torch.bfloat16)
    assert isinstance(encoder._table, PackedTensor)
    layers = [layer for layer in encoder._model.modules() if isinstance(layer, PackedLinear)]
    assert len(layers) == 3 * 7
    assert encoder._model.encoder.final_layer_norm.weight.dtype == torch.float32
    assert encoder.hidden_states([3, 1]).dtype == torch.bfloat16


def test_the_table_of_safetensors_is_not_cast_as_a_whole(reference, tmp_path):
    table = reference.state_dict()["shared.weight"].half()
    save_file(
        {**transformers_weights(reference), "shared.weight": table}, tmp_path / "m.safetensors"
    )
    encoder = load(tmp_path / "m.safetensors")
    assert encoder._table.dtype == torch.float16
    assert encoder.hidden_states([3, 1]).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "config.json: model_type is 't5', supported: 'umt5'"),
        ({"feed_forward_proj": "relu"}, "feed_forward_proj is 'relu', supported: 'gated-gelu'"),
        ({"d_model": "32"}, "d_model is '32', expected a positive int"),
        ({"num_heads": 0}, "num_heads is 0, expected a positive int"),
        ({"relative_attention_num_buckets": 2}, "relative_attention_num_buckets is 2 up to"),
        ({"num_layers": 4}, "lacks 10 tensors .*'encoder.block.3.layer.0.SelfAttention.q.weight'"),
        ({"num_layers": 2}, "holds 10 tensors .* unknown to the architecture"),
        ({"d_ff": 96}, r"wi_0.weight' is \[64, 32\], expected \[96, 32\]"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folder, tmp_path, changes, message):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
def test_scaled_8_bit_floats_are_multiplied_by_their_scales(weights, tmp_path, scale):
    # ComfyUI's own files leave the table as it is.
    parts = ("SelfAttention", "Dense") if scale == "scale_weight" else ("weight",)
    scaled, meant = scaled_fp8(
        weights, lambda name: "bias" not in name and any(part in name for part in parts), scale
    )
    scaled["scaled_fp8"] = torch.zeros(0).to(torch.float8_e4m3fn)
    scaled["spiece_model"] = text_tensor("a tokenizer of another kind")
    save_file(scaled, tmp_path / "umt5_fp8_scaled.safetensors")
    save_file(meant, tmp_path / "umt5.safetensors")
    tokens = some_tokens(20).tolist()
    expected = load(tmp_path / "umt5.safetensors").hidden_states(tokens)
    assert torch.equal(
        load(tmp_path / "umt5_fp8_scaled.safetensors").hidden_states(tokens), expected
    )


def without(weights, *parts):
    return {name: w for name, w in weights.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: without(
                w, "block.1.layer.0.SelfAttention.rel", "block.2.layer.0.SelfAttention.rel"
            ),
            "a T5 encoder, with a position bias in its first block alone",
        ),
        (lambda w: without(w, "shared"), "tensor 'shared.weight' is missing, expected a UMT5"),
        (lambda w: without(w, "block.1.layer.1.DenseReluDense.wo"), "lacks 1 tensor"),
        (lambda w: {**w, "extra.weight": torch.ones(1)}, "holds 1 tensor .'extra.weight'"),
        (
            lambda w: {**w, "blocks.0.norm1.weight": torch.ones(32)},
            "are both 'encoder.block.0.layer.0.layer_norm.weight'",
        ),
        (lambda w: {**w, "shared.weight": torch.ones(32)}, "has shape .32., expected 2 dimensions"),
    ],
    ids=["T5", "no table", "lacks one", "one more", "twice", "flat table"],
)
def test_a_file_of_other_tensors_is_refused(weights, tmp_path, change, message):
    path = tmp_path / "umt5.safetensors"
    save_file(change(weights), path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


def test_a_gguf_transformer_given_as_text_encoder_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "wan.gguf", "wan")
    for name in ("blocks.0.self_attn.q.weight", "vace_blocks.0.self_attn.q.weight"):
        writer.add_tensor(name, torch.ones(32, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedCheckpoint, match="holds Wan VACE transformer, expected a UMT5"):
        load(tmp_path / "wan.gguf")
