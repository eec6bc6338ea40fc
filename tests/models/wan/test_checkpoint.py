"""From folders and files, as they are published and as they are shared, to a pipeline that runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.catalogue import describe, discover
from models.errors import CheckpointError, UnsupportedCheckpoint
from models.latent_preview import PREVIEW_FILE
from models.loading import weights_of
from models.wan.checkpoint import WanVaceCheckpoint
from models.wan.gguf_convert import convert_to_gguf
from models.wan.pipeline import WanVacePipeline
from models.wan.preview_fit import fit_preview
from models.wan.spec import NEGATIVE_PROMPT
from models.wan.transformer_names import to_original
from models.weights.gguf.file_type import FileType
from tests.models.runs import relative_error
from tests.models.tiny import edit_json
from tests.models.wan.tiny_checkpoint import load, request, run, write_checkpoint
from tests.models.wan.tiny_umt5 import (
    make_reference,
    renamed,
    transformers_weights,
    write_gguf,
)


@pytest.fixture(scope="module")
def plain_folder(tiny_wan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as its parts are shared one by one: nothing says what it is."""
    folder = tmp_path_factory.mktemp("plain") / "shared"
    folder.mkdir()
    convert_to_gguf(tiny_wan / "transformer", folder / "Tiny_VACE-Q8_0.gguf", FileType.Q8_0)
    vae = tiny_wan / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(vae, folder / "wan_2.1_vae.safetensors")
    text_encoder = tiny_wan / "text_encoder"
    shutil.copytree(text_encoder, folder / "text_encoder")
    shutil.copy(tiny_wan / "tokenizer" / "tokenizer.json", folder)
    return folder


def test_a_diffusers_folder_is_described_by_its_own_configuration(tmp_path: Path):
    folder = write_checkpoint(tmp_path / "Tiny Wan", with_limits=False)
    (spec,) = discover([str(folder)])
    assert spec.id == "tiny-wan"
    assert (spec.family, spec.task) == ("wan-vace", "video")
    assert spec.samplers == ("unipc", "dpm-solver++", "flow-euler")
    assert (spec.width.default, spec.height.default, spec.width.multiple_of) == (832, 480, 16)
    assert spec.num_images.maximum == 1
    assert spec.video is not None
    assert (spec.video.num_frames.default, spec.video.fps.default) == (81, 16.0)
    assert spec.video.flow_shift.default == 3.0
    assert spec.video.num_conditioning_scales == 1
    assert spec.negative_prompt == NEGATIVE_PROMPT


def test_shared_files_are_found_by_what_they_are(plain_folder: Path):
    checkpoint = WanVaceCheckpoint.read(plain_folder)
    assert checkpoint.transformer.name == "Tiny_VACE-Q8_0.gguf"
    assert checkpoint.autoencoder.name == "wan_2.1_vae.safetensors"
    assert checkpoint.text_encoder.name == "text_encoder"
    assert checkpoint.tokenizer.name == "tokenizer.json"
    # Without a scheduler's configuration: what the official commands take.
    assert (checkpoint.sampler, checkpoint.shift) == ("unipc", 16.0)
    assert (checkpoint.config.dim, checkpoint.config.num_layers) == (128, 2)


@pytest.mark.parametrize("residency", ["packed", "bf16"])
def test_shared_files_make_nearly_the_same_clip(plain_folder: Path, tiny_wan: Path, residency):
    expected = run(load(tiny_wan), request()).latents
    spec = describe(plain_folder).model_copy(update={"residency": residency})
    small = spec.width.model_copy(update={"minimum": 16, "default": 48})
    spec = spec.model_copy(update={"width": small, "height": small})
    pipeline = WanVacePipeline.load(spec, device="cpu", dtype=torch.float32)
    assert pipeline.residency == {"packed": "packed", "bf16": "float32"}[residency]
    # The autoencoder's statistics are those of the release in a file that does not tell them.
    # Random weights in 8 bits: what differs is the quantisation, not the way.
    assert relative_error(run(pipeline, request()).latents, expected) < 0.05


def test_packed_and_converted_weights_are_the_same_numbers(plain_folder: Path):
    runs = {}
    for residency in ("packed", "bf16"):
        pipeline = load(plain_folder, residency=residency)
        runs[residency] = run(pipeline, request(width=48, height=32)).latents
    assert runs["packed"].equal(runs["bf16"])


def test_an_autoencoder_as_pth_and_a_preview_map_are_told_from_transformers(
    plain_folder: Path, tmp_path: Path
):
    folder = shutil.copytree(plain_folder, tmp_path / "copy")
    tensors = load_file(folder / "wan_2.1_vae.safetensors")
    (folder / "wan_2.1_vae.safetensors").unlink()
    torch.save(tensors, folder / "Wan2.1_VAE.pth")
    save_file({"weight": torch.zeros(3, 16), "bias": torch.zeros(3)}, folder / PREVIEW_FILE)
    checkpoint = WanVaceCheckpoint.read(folder)
    assert checkpoint.autoencoder.name == "Wan2.1_VAE.pth"
    assert checkpoint.transformer.name == "Tiny_VACE-Q8_0.gguf"
    pipeline = load(folder)
    halfway = pipeline.prepare(request())
    pipeline.step([halfway])
    assert len(pipeline.preview(halfway)) == 3


def test_files_that_bring_no_preview_map_give_previews_all_the_same(plain_folder: Path):
    assert not (plain_folder / PREVIEW_FILE).exists()
    pipeline = load(plain_folder)
    generation = pipeline.prepare(request())
    assert pipeline.preview(generation) == []
    pipeline.step([generation])
    assert [frame.size for frame in pipeline.preview(generation)] == [(48, 32)] * 3


def test_an_autoencoder_that_says_nothing_finite_gives_no_previews(plain_folder: Path):
    autoencoder = load(plain_folder).autoencoder
    with torch.no_grad():
        autoencoder.quant_conv.weight.fill_(torch.nan)
    assert fit_preview(autoencoder) is None


def test_an_autoencoder_whose_names_have_a_prefix_is_the_same(plain_folder: Path, tmp_path: Path):
    folder = shutil.copytree(plain_folder, tmp_path / "copy")
    path = folder / "wan_2.1_vae.safetensors"
    tensors = load_file(path)
    expected = load(folder).autoencoder.state_dict()
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, path)
    found = load(folder).autoencoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_files_of_the_original_release_make_a_model(plain_folder: Path, tmp_path: Path):
    folder = shutil.copytree(plain_folder, tmp_path / "Wan2.1-VACE-Tiny")
    expected = run(load(folder), request()).latents
    autoencoder = folder / "wan_2.1_vae.safetensors"
    torch.save(load_file(autoencoder), folder / "Wan2.1_VAE.pth")
    encoder = folder / "text_encoder"
    weights = load_file(encoder / "model.safetensors")
    torch.save(weights, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    (folder / "google").mkdir()
    (folder / "google" / "umt5-xxl").mkdir()
    (folder / "tokenizer.json").rename(folder / "google" / "umt5-xxl" / "tokenizer.json")
    autoencoder.unlink()
    shutil.rmtree(encoder)
    assert torch.equal(run(load(folder), request()).latents, expected)
    (folder / "google" / "umt5-xxl" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"expected one of .*google/umt5-xxl/tokenizer\.json"):
        WanVaceCheckpoint.read(folder)


def test_the_variant_asked_for_is_loaded(wan_copy: Path):
    for file in wan_copy.glob("*/*.safetensors"):
        shutil.copy(file, file.with_suffix(".fp16.safetensors"))
        file.write_bytes(b"not this one")
    pipeline = load(wan_copy, variant="fp16")
    assert pipeline.spec.variant == "fp16"
    with pytest.raises(CheckpointError, match="damaged"):
        load(wan_copy)


def test_a_gguf_file_names_a_model_of_its_own(plain_folder: Path):
    (spec,) = discover([str(plain_folder / "Tiny_VACE-Q8_0.gguf")])
    assert spec.id == "tiny_vace-q8_0"
    assert spec.source.name == "Tiny_VACE-Q8_0.gguf"
    folder, _ = discover([str(plain_folder), str(plain_folder / "Tiny_VACE-Q8_0.gguf")])
    assert folder.id == "shared"


def test_a_gguf_beside_a_diffusers_folder_takes_its_parts_and_limits(wan_copy: Path):
    file = wan_copy / "tiny-Q4_K_M.gguf"
    convert_to_gguf(wan_copy / "transformer", file, FileType.Q4_K_M)
    edit_json(wan_copy / "transformer" / "config.json", text_len=32)
    spec = describe(file)
    assert spec.id == "tiny-q4_k_m"
    assert spec.width.default == 48
    assert WanVaceCheckpoint.read(file).config.text_len == 32
    pipeline = load(file)
    assert pipeline.decode(run(pipeline, request())).frames.shape == (9, 32, 48, 3)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (
            "wan_2.1_vae.safetensors",
            "expected a folder 'vae' or one autoencoder file beside the transformer, found: none",
        ),
        (
            "text_encoder",
            "'text_encoder' or one text encoder file beside the transformer, found: none",
        ),
        ("tokenizer.json", "google/umt5-xxl/tokenizer.json, found: none"),
        ("Tiny_VACE-Q8_0.gguf", "expected transformer/config.json or one transformer file, found"),
    ],
)
def test_a_missing_part_is_named(plain_folder: Path, tmp_path: Path, removed: str, message: str):
    folder = shutil.copytree(plain_folder, tmp_path / "copy")
    path = folder / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match=message.replace(".", r"\.")):
        describe(folder)


def test_two_transformers_in_one_folder_are_not_guessed_between(plain_folder: Path, tmp_path: Path):
    folder = shutil.copytree(plain_folder, tmp_path / "copy")
    shutil.copy(folder / "Tiny_VACE-Q8_0.gguf", folder / "Tiny_VACE-Q4_0.gguf")
    with pytest.raises(CheckpointError, match=r"found: Tiny_VACE-Q4_0\.gguf, Tiny_VACE-Q8_0"):
        describe(folder)
    assert describe(folder / "Tiny_VACE-Q4_0.gguf").id == "tiny_vace-q4_0"


def test_a_transformer_in_one_safetensors_file_is_taken_too(
    plain_folder: Path, tiny_wan: Path, tmp_path: Path
):
    folder = shutil.copytree(plain_folder, tmp_path / "copy")
    (folder / "Tiny_VACE-Q8_0.gguf").unlink()
    weights = load_file(tiny_wan / "transformer" / "diffusion_pytorch_model.safetensors")
    prefixed = {f"model.diffusion_model.{to_original(n)}": t for n, t in weights.items()}
    save_file(prefixed, folder / "tiny_vace_fp32.safetensors")
    checkpoint = WanVaceCheckpoint.read(folder)
    assert checkpoint.transformer.name == "tiny_vace_fp32.safetensors"
    assert checkpoint.config.vace_layers == (0,)
    pipeline = load(folder)
    assert pipeline.residency == "float32"


def test_shards_of_the_original_release_are_one_transformer(
    plain_folder: Path, tiny_wan: Path, tmp_path: Path
):
    folder = shutil.copytree(plain_folder, tmp_path / "copy")
    (folder / "Tiny_VACE-Q8_0.gguf").unlink()
    weights = load_file(tiny_wan / "transformer" / "diffusion_pytorch_model.safetensors")
    names = list(weights)
    shards = [folder / f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for number, shard in enumerate(shards):
        save_file({to_original(name): weights[name] for name in names[number::2]}, shard)
    checkpoint = WanVaceCheckpoint.read(folder)
    assert checkpoint.config.num_layers == 2
    # All of them are what a recipe's digest must cover.
    assert set(shards) < set(weights_of(describe(folder)))
    expected = run(load(tiny_wan), request(width=48, height=32)).latents
    assert run(load(folder), request(width=48, height=32)).latents.equal(expected)
    shards[0].unlink()
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.safetensors: shard is missing"):
        describe(folder)


@pytest.mark.parametrize("name", ["encoder-Q8_0.gguf", "a.gguf"])
def test_a_gguf_text_encoder_is_told_by_its_tensors(plain_folder: Path, tmp_path: Path, name: str):
    folder = shutil.copytree(plain_folder, tmp_path / "copy")
    shutil.rmtree(folder / "text_encoder")
    write_gguf(folder / name, transformers_weights(make_reference()))
    # Named like a text encoder, and none.
    (folder / "Tiny_VACE-Q8_0.gguf").rename(folder / "with_t5_VACE-Q8_0.gguf")
    checkpoint = WanVaceCheckpoint.read(folder)
    assert checkpoint.text_encoder.name == name
    assert checkpoint.transformer.name == "with_t5_VACE-Q8_0.gguf"


def test_safetensors_are_told_by_their_tensors(plain_folder: Path, tiny_wan: Path, tmp_path: Path):
    folder = shutil.copytree(plain_folder, tmp_path / "copy")
    (folder / "Tiny_VACE-Q8_0.gguf").unlink()
    shutil.rmtree(folder / "text_encoder")
    (folder / "wan_2.1_vae.safetensors").rename(folder / "a.safetensors")
    transformer = load_file(tiny_wan / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file({to_original(n): t for n, t in transformer.items()}, folder / "vae_t5.safetensors")
    encoder = transformers_weights(make_reference())
    save_file(renamed(encoder, "wan"), folder / "encoder.safetensors")
    # What a folder of ComfyUI may have besides, by the names of their tensors.
    for name, tensors in {
        "clip_vision_h": ["vision_model.encoder.layers.0.self_attn.q_proj.weight"],
        "lora": ["diffusion_model.blocks.0.self_attn.q.lora_down.weight"],
        "taew2_1": ["encoder.0.weight", "decoder.1.conv.0.weight"],
        "wan2.1_t2v": ["blocks.0.self_attn.q.weight"],
        "vace_module": ["vace_blocks.0.self_attn.q.weight"],
    }.items():
        save_file({t: torch.zeros(1) for t in tensors}, folder / f"{name}.safetensors")
    checkpoint = WanVaceCheckpoint.read(folder)
    assert checkpoint.transformer.name == "vae_t5.safetensors"
    assert checkpoint.autoencoder.name == "a.safetensors"
    assert checkpoint.text_encoder.name == "encoder.safetensors"
    (folder / "vae_t5.safetensors").unlink()
    (folder / "vace_module.safetensors").unlink()
    with pytest.raises(UnsupportedCheckpoint, match=r"wan2\.1_t2v\.safetensors: .* without VACE"):
        describe(folder)
    (folder / "wan2.1_t2v.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"one transformer file, found: none \(other files: a"
    ):
        describe(folder)


def test_a_damaged_gguf_beside_the_one_asked_for_does_no_harm(plain_folder: Path, tmp_path: Path):
    folder = shutil.copytree(plain_folder, tmp_path / "copy")
    (folder / "broken.gguf").write_bytes(b"GGUF")
    assert describe(folder / "Tiny_VACE-Q8_0.gguf").id == "tiny_vace-q8_0"
    with pytest.raises(CheckpointError, match=r"found: Tiny_VACE-Q8_0\.gguf, broken\.gguf"):
        describe(folder)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        (
            "prediction_type",
            "epsilon",
            "prediction_type is 'epsilon', supported: 'flow_prediction'",
        ),
        ("flow_shift", 0, "flow_shift is 0, expected a number"),
        ("_class_name", "DDIMScheduler", "scheduler is 'DDIMScheduler', supported"),
        ("solver_order", 3, "solver_order is 3, supported: 2"),
        ("solver_type", "bh1", "solver_type is 'bh1', supported: 'bh2'"),
        ("use_dynamic_shifting", True, "use_dynamic_shifting is True, supported: False"),
    ],
)
def test_schedulers_that_are_not_computed_are_refused(wan_copy: Path, entry, value, message):
    path = wan_copy / "scheduler" / "scheduler_config.json"
    edit_json(path, **{entry: value})
    with pytest.raises(CheckpointError, match=message) as caught:
        describe(wan_copy)
    assert str(caught.value).startswith(str(path))


def test_another_pipeline_is_refused(wan_copy: Path):
    edit_json(wan_copy / "model_index.json", _class_name="WanPipeline")
    with pytest.raises(UnsupportedCheckpoint, match="WanPipeline"):
        WanVaceCheckpoint.read(wan_copy)


def test_weights_that_do_not_fit_the_memory_are_refused_with_the_numbers(plain_folder, monkeypatch):
    monkeypatch.setattr("models.wan.placement.available_host_bytes", lambda: 1000)
    with pytest.raises(CheckpointError, match=r"Tiny_VACE-Q8_0\.gguf: packed weights take"):
        load(plain_folder)


def test_fp8_is_refused_where_the_device_has_none(plain_folder):
    with pytest.raises(CheckpointError, match="residency fp8 was asked for"):
        load(plain_folder, residency="fp8")


def test_limits_are_overridden_one_by_one(wan_copy: Path):
    (wan_copy / "denoised.json").write_text(
        json.dumps({"video": {"fps": {"default": 8.0}, "max_reference_images": 1}})
    )
    video = describe(wan_copy).video
    assert video is not None
    assert (video.fps.default, video.fps.maximum, video.max_reference_images) == (8.0, 60.0, 1)
    assert video.num_frames.default == 81
