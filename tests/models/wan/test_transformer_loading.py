"""A transformer is the same model from whichever file it is loaded, or it is refused in a line."""

from __future__ import annotations

import gguf
import pytest
import torch
from safetensors.torch import save_file

from models.errors import CheckpointError, UnsupportedCheckpoint
from models.wan.gguf_inspection import inspect_gguf
from models.wan.transformer import WanVaceConfig
from models.wan.transformer_loading import load_transformer
from models.weights.packed.fp8_linear import Fp8Linear
from models.weights.packed.linear import PackedLinear
from tests.models.wan.scaled_files import scaled_fp8, text_tensor
from tests.models.wan.tiny_transformer import (
    WIDE,
    make_inputs,
    make_ours,
    make_reference,
    original_weights,
    relative_error,
    run_ours,
    write_gguf,
)

CPU = {"device": "cpu", "dtype": torch.float32}
# The same numbers through the same kernels, but for weights that are transposed in memory.
SAME = 1e-6


@pytest.fixture(scope="module")
def reference():
    return make_reference(WIDE)


@pytest.fixture(scope="module")
def weights(reference):
    return {name: tensor.contiguous() for name, tensor in original_weights(reference).items()}


@pytest.fixture(scope="module")
def inputs():
    return make_inputs(2, 2, text_dim=WIDE["text_dim"])


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_safetensors_file_in_original_names_loads(tmp_path, reference, weights, inputs, prefix):
    path = tmp_path / "wan.safetensors"
    save_file({prefix + name: tensor for name, tensor in weights.items()}, path)
    loaded = load_transformer(path, **CPU)
    assert (
        relative_error(run_ours(loaded, *inputs), run_ours(make_ours(reference), *inputs)) <= SAME
    )


def test_a_sharded_diffusers_folder_loads(tmp_path, reference, inputs):
    reference.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_transformer(tmp_path, **CPU)
    assert (
        relative_error(run_ours(loaded, *inputs), run_ours(make_ours(reference), *inputs)) <= SAME
    )


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16"])
def test_gguf_equals_safetensors_of_its_numbers(tmp_path, weights, inputs, kind):
    stored = write_gguf(tmp_path / "wan.gguf", weights, gguf.GGMLQuantizationType[kind])
    save_file(stored, tmp_path / "wan.safetensors")
    truth = run_ours(load_transformer(tmp_path / "wan.safetensors", **CPU), *inputs)
    for residency in ("packed", "bf16"):
        loaded = load_transformer(tmp_path / "wan.gguf", residency=residency, **CPU)
        assert relative_error(run_ours(loaded, *inputs), truth) <= SAME


def test_quantised_matrices_stay_packed_and_nothing_else(tmp_path, weights):
    path = tmp_path / "wan.gguf"
    write_gguf(path, weights)
    packed = load_transformer(path, device="cpu", dtype=torch.bfloat16, residency="packed")
    expected = {
        name.removesuffix(".weight")
        for name, tensor in weights.items()
        if tensor.ndim == 2 and "blocks." in name
    }
    found = {name for name, layer in packed.named_modules() if isinstance(layer, PackedLinear)}
    assert found == expected
    assert packed.dtype == packed.text_embedding[0].weight.dtype == torch.bfloat16
    plain = load_transformer(path, device="cpu", dtype=torch.bfloat16, residency="bf16")
    assert not any(isinstance(layer, PackedLinear) for layer in plain.modules())
    assert plain.blocks[0].ffn[0].weight.dtype == torch.bfloat16


def test_norms_and_modulation_stay_float32(tmp_path, weights):
    path = tmp_path / "wan.gguf"
    write_gguf(path, weights)
    loaded = load_transformer(path, device="cpu", dtype=torch.bfloat16)
    block = loaded.vace_blocks[0]
    assert torch.equal(block.modulation, weights["vace_blocks.0.modulation"])
    assert torch.equal(block.norm3.weight, weights["vace_blocks.0.norm3.weight"])
    assert torch.equal(
        block.cross_attn.norm_k.weight, weights["vace_blocks.0.cross_attn.norm_k.weight"]
    )
    assert torch.equal(loaded.time_projection[1].weight, weights["time_projection.1.weight"])


def test_packed_bfloat16_computes_what_bf16_computes(tmp_path, weights, inputs):
    path = tmp_path / "wan.gguf"
    write_gguf(path, weights)
    modes = [
        run_ours(
            load_transformer(path, device="cpu", dtype=torch.bfloat16, residency=mode), *inputs
        )
        for mode in ("packed", "bf16")
    ]
    # Both round the same float32 numbers to bfloat16 once.
    assert torch.equal(*modes)


def test_fp8_replaces_the_linear_layers_of_the_blocks(tmp_path, weights, inputs):
    path = tmp_path / "wan.gguf"
    write_gguf(path, weights)
    loaded = load_transformer(path, residency="fp8", **CPU)
    found = {name for name, layer in loaded.named_modules() if isinstance(layer, Fp8Linear)}
    assert "blocks.0.self_attn.q" in found
    assert "vace_blocks.0.before_proj" in found
    assert not any(name.startswith(("head", "time", "text")) for name in found)
    truth = run_ours(load_transformer(path, residency="bf16", **CPU), *inputs)
    # Three bits of mantissa leave a few percent a layer.
    assert relative_error(run_ours(loaded, *inputs), truth) <= 0.1


def test_views_of_the_file_are_used_where_nothing_changes(tmp_path, weights):
    path = tmp_path / "wan.gguf"
    write_gguf(path, weights)
    loaded = load_transformer(path, residency="packed", **CPU)
    content = loaded.blocks[0].ffn[0].packed.untyped_storage()
    assert content.nbytes() == path.stat().st_size
    assert loaded.blocks[1].modulation.untyped_storage().data_ptr() == content.data_ptr()


def test_what_was_loaded_is_frozen_and_outlives_the_file(tmp_path, weights, inputs):
    path = tmp_path / "wan.gguf"
    write_gguf(path, weights)
    loaded = load_transformer(path, residency="packed", **CPU)
    before = run_ours(loaded, *inputs)
    path.unlink()
    assert torch.equal(run_ours(loaded, *inputs), before)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training


def test_a_given_configuration_wins_over_the_shapes(tmp_path, reference, weights):
    path = tmp_path / "wan.safetensors"
    save_file(weights, path)
    config = WanVaceConfig.from_json({**reference.config, "text_len": 32})
    assert load_transformer(path, config=config, **CPU).config.text_len == 32


def folded(weights):
    """As stable-diffusion.cpp and other tools on ggml store them."""
    changed = {}
    for name, tensor in weights.items():
        if name.endswith("modulation"):
            tensor = tensor[0]
        elif name.endswith("patch_embedding.weight"):
            tensor = tensor.flatten(0, 1)
        changed[name] = tensor
    return changed


@pytest.mark.parametrize("packed", [True, False])
def test_shapes_that_other_converters_fold_are_unfolded(tmp_path, weights, inputs, packed):
    write_gguf(tmp_path / "plain.gguf", weights)
    write_gguf(tmp_path / "folded.gguf", folded(weights))
    mode = "packed" if packed else "bf16"
    models = [
        load_transformer(tmp_path / f"{form}.gguf", residency=mode, **CPU)
        for form in ("plain", "folded")
    ]
    assert models[0].config == models[1].config
    assert torch.equal(*(run_ours(model, *inputs) for model in models))
    architecture = inspect_gguf(tmp_path / "folded.gguf").architecture
    assert architecture is not None
    assert not architecture.misshapen


def test_shapes_that_are_no_folding_are_refused(tmp_path, weights):
    name = "blocks.1.modulation"
    save_file({**weights, name: weights[name][0].t().contiguous()}, tmp_path / "wan.safetensors")
    with pytest.raises(CheckpointError, match=r"'blocks.1.modulation' is \[128, 6\], expected"):
        load_transformer(tmp_path / "wan.safetensors", **CPU)
    name = "patch_embedding.weight"
    flat = weights[name].flatten(0, 1)[:-1].contiguous()
    save_file({**weights, name: flat}, tmp_path / "wan.safetensors")
    with pytest.raises(CheckpointError, match=r"'patch_embedding.weight' has shape .*expected 5"):
        load_transformer(tmp_path / "wan.safetensors", **CPU)


@pytest.mark.parametrize(
    ("scale", "prefix"), [("scale_weight", "model.diffusion_model."), ("weight_scale", "")]
)
def test_scaled_8_bit_floats_are_multiplied_by_their_scales(
    tmp_path, weights, inputs, scale, prefix
):
    scaled, meant = scaled_fp8(weights, lambda name: "blocks." in name, scale)
    marker = {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    save_file(
        {prefix + name: t for name, t in (scaled | marker).items()}, tmp_path / "a.safetensors"
    )
    save_file(meant, tmp_path / "b.safetensors")
    expected = run_ours(load_transformer(tmp_path / "b.safetensors", **CPU), *inputs)
    loaded = load_transformer(tmp_path / "a.safetensors", **CPU)
    assert torch.equal(run_ours(loaded, *inputs), expected)


def test_a_marker_of_scales_that_a_conversion_left_is_passed_over(tmp_path, weights):
    path = tmp_path / "wan.gguf"
    write_gguf(path, {**weights, "model.diffusion_model.scaled_fp8": torch.zeros(2)})
    load_transformer(path, **CPU)
    architecture = inspect_gguf(path).architecture
    assert architecture is not None
    assert not architecture.unexpected


def damaged(weights, change):
    weights = dict(weights)
    change(weights)
    return weights


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda w: w.pop("blocks.1.ffn.2.bias"),
            CheckpointError,
            r"lacks 1 tensor \('blocks.1.ffn.2.bias'\) of the architecture",
        ),
        (
            lambda w: w.update({f"lora.{i}": torch.zeros(1) for i in range(5)}),
            CheckpointError,
            r"holds 5 tensors \('lora.0', 'lora.1', 'lora.2' and 2 more\) unknown",
        ),
        (
            lambda w: w.update({"blocks.1.ffn.2.weight": torch.zeros(128, 128)}),
            CheckpointError,
            r"'blocks.1.ffn.2.weight' is \[128, 128\], expected \[128, 256\]",
        ),
        (
            lambda w: w.update({"blocks.0.norm2.weight": torch.zeros(128)}),
            CheckpointError,
            "tensors 'blocks.0.norm2.weight' and 'blocks.0.norm3.weight' are both",
        ),
        (
            lambda w: w.update({"blocks.1.ffn.2.scale_weight": torch.ones(3)}),
            CheckpointError,
            r"'blocks.1.ffn.2.scale_weight' holds \[3\] of torch.float32, expected one",
        ),
        (
            lambda w: w.update({"blocks.7.ffn.2.weight_scale": torch.ones(1)}),
            CheckpointError,
            "is a scale, but there is no 'blocks.7.ffn.2.weight'",
        ),
        (
            lambda w: w.update(
                {
                    f"blocks.1.ffn.2.{name}": torch.ones(1)
                    for name in ("scale_weight", "weight_scale")
                }
            ),
            CheckpointError,
            "'blocks.1.ffn.2.weight' has two scales",
        ),
        (
            lambda w: w.update({"blocks.1.ffn.2.comfy_quant": text_tensor('{"format": "nvfp4"}')}),
            UnsupportedCheckpoint,
            "'blocks.1.ffn.2.comfy_quant': the format is 'nvfp4', supported: float8",
        ),
        (
            lambda w: w.update({"blocks.1.ffn.2.comfy_quant": text_tensor("[" * 5000)}),
            CheckpointError,
            "'blocks.1.ffn.2.comfy_quant' names no format of numbers",
        ),
        (
            lambda w: w.update({"head.head.bias": torch.zeros(64, dtype=torch.int64)}),
            CheckpointError,
            "'head.head.bias' holds torch.int64, expected floating-point numbers",
        ),
        (
            lambda w: [w.pop(name) for name in list(w) if name.startswith("vace_blocks")],
            UnsupportedCheckpoint,
            "without VACE",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path, weights, change, error, message):
    path = tmp_path / "wan.safetensors"
    save_file(damaged(weights, change), path)
    with pytest.raises(error, match=message) as caught:
        load_transformer(path, **CPU)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_gguf_file_of_another_model_is_refused(tmp_path, weights):
    path = tmp_path / "wan.gguf"
    write_gguf(path, {name: w for name, w in weights.items() if not name.startswith("blocks.")})
    with pytest.raises(UnsupportedCheckpoint, match=r"VACE blocks alone"):
        load_transformer(path, **CPU)
