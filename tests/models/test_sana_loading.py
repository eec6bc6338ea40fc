"""Loading a Sana checkpoint: every part it brings, in every precision, and every damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.catalogue import describe
from models.errors import CheckpointError
from models.latent_preview import PREVIEW_FILE
from models.loading import load
from models.sana.pipeline import SanaPipeline
from tests.models.runs import (
    REQUEST,
    finish,
    pipeline_of,
    pixels,
    relative_error,
    request,
    run,
)
from tests.models.tiny import write_checkpoint


def test_without_a_text_encoder_embeddings_start_a_generation(
    pipeline: SanaPipeline, tiny_checkpoint: Path
) -> None:
    bare = SanaPipeline.load(
        describe(tiny_checkpoint), device="cpu", dtype=torch.float32, text_encoder=False
    )
    with pytest.raises(RuntimeError, match="loaded without its text encoder"):
        bare.prepare(REQUEST)
    assert pipeline.text_encoder is not None
    positive = pipeline.text_encoder.encode(REQUEST.prompt)
    negative = pipeline.text_encoder.encode(REQUEST.negative_prompt, "negative")
    with pytest.raises(ValueError, match="negative"):
        bare.begin(REQUEST, positive, None)
    generation = bare.begin(REQUEST, positive, negative)
    finish(bare, generation)
    assert torch.equal(generation.latents, run(pipeline, REQUEST).latents)


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.bfloat16)],
    ids=str,
)
def test_half_precision_keeps_float16_out_of_text_encoder_and_autoencoder(
    pipeline: SanaPipeline, tiny_checkpoint: Path, dtype: torch.dtype, wide: torch.dtype
) -> None:
    half = pipeline_of(tiny_checkpoint, dtype)
    assert next(half.transformer.parameters()).dtype == dtype
    assert next(half.autoencoder.parameters()).dtype == wide
    assert half.text_encoder is not None
    assert half.text_encoder.encode("a cat").dtype == wide
    generation = run(half, REQUEST)
    assert generation.latents.dtype == torch.float32
    assert relative_error(generation.latents, run(pipeline, REQUEST).latents) < 0.1
    assert len(half.decode(generation)) == 1


def test_a_variant_named_by_the_spec_is_loaded(tiny_copy: Path, pipeline: SanaPipeline) -> None:
    for component in ("transformer", "vae", "text_encoder"):
        (path,) = (tiny_copy / component).glob("*.safetensors")
        state = {name: tensor * 2 for name, tensor in load_file(path).items()}
        save_file(state, path.with_suffix(".twice.safetensors"))
    spec = describe(tiny_copy).model_copy(update={"variant": "twice"})
    twice = load(spec, device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(twice, SanaPipeline)
    weight = pipeline.transformer.proj_out.weight
    assert torch.equal(twice.transformer.proj_out.weight, weight * 2)


def truncate(path: Path, tensor: str) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def leave_out(path: Path, tensor: str) -> None:
    save_file({name: value for name, value in load_file(path).items() if name != tensor}, path)


def reshape(path: Path, tensor: str) -> None:
    save_file({**load_file(path), tensor: torch.zeros(7)}, path)


def quantise(path: Path, tensor: str) -> None:
    state = load_file(path)
    save_file({**state, tensor: state[tensor].to(torch.int8)}, path)


def add(path: Path, tensor: str) -> None:
    save_file({**load_file(path), f"{tensor}.more": torch.zeros(1)}, path)


def empty(path: Path, tensor: str) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "damaged or truncated"),
        (empty, "damaged or truncated"),
        (quantise, "tensor '{tensor}' holds torch.int8"),
        (add, r"holds 1 tensor \('{tensor}.more'\) unknown"),
        (leave_out, r"lacks 1 tensor \('{tensor}'\)"),
        (reshape, r"tensor '{tensor}' has shape \[7\], the configuration asks for"),
    ],
)
def test_damage_names_component_file_and_tensor(
    tiny_copy: Path, component: str, damage: Callable[[Path, str], None], message: str
) -> None:
    (path,) = (tiny_copy / component).glob("*.safetensors")
    # In the autoencoder this is one of the encoder, which is checked although nothing runs it.
    tensor = min(load_file(path), key=lambda name: (not name.startswith("encoder."), name))
    damage(path, tensor)
    expected = rf"{component}/{path.name}: " + message.replace("{tensor}", tensor)
    with pytest.raises(CheckpointError, match=expected) as caught:
        pipeline_of(tiny_copy)
    assert "\n" not in str(caught.value)


def test_a_text_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    narrow = write_checkpoint(
        tmp_path / "narrow",
        transformer={"caption_channels": 16},
    )
    with pytest.raises(CheckpointError, match=r"text_encoder.config\.json: hidden_size is 32, but"):
        pipeline_of(narrow)


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "tokenizer"])
def test_a_missing_component_is_named(tiny_copy: Path, component: str) -> None:
    spec = describe(tiny_copy)
    shutil.rmtree(tiny_copy / component)
    with pytest.raises(CheckpointError, match=component):
        SanaPipeline.load(spec, device="cpu", dtype=torch.float32)


def test_weights_that_are_no_numbers_fail_the_job_rather_than_paint_it_black(
    tiny_copy: Path,
) -> None:
    path = tiny_copy / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    save_file({**state, "decoder.conv_in.bias": state["decoder.conv_in.bias"] * torch.nan}, path)
    damaged = pipeline_of(tiny_copy)
    with pytest.raises(ArithmeticError, match="not finite"):
        damaged.decode(run(damaged, REQUEST))


def test_a_token_beyond_the_text_encoder_s_embeddings_is_named(tiny_copy: Path) -> None:
    path = tiny_copy / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["a"] = 100_000
    path.write_text(json.dumps(tokenizer))
    encoder = pipeline_of(tiny_copy).text_encoder
    assert encoder is not None
    with pytest.raises(CheckpointError, match=r"tokenizer.json: has token 100000, .* only 400"):
        encoder.encode("a", "negative")


def test_a_preview_follows_the_map_of_the_checkpoint(tiny_copy: Path) -> None:
    weight, bias = torch.zeros(3, 32), torch.tensor([0.0, 0.5, -1.0])
    weight[0, 4] = 0.1
    save_file({"weight": weight, "bias": bias}, tiny_copy / PREVIEW_FILE)
    pipeline = pipeline_of(tiny_copy)
    generation = pipeline.prepare(request(width=64, num_images=2))
    assert pipeline.preview(generation) == []
    pipeline.step([generation])
    images = pipeline.preview(generation)
    assert [image.size for image in images] == [(16, 32)] * 2
    red = generation.previous_denoised[0, 4] * 0.1
    expected = ((red.mean() / 2 + 0.5) * 255).item()
    colour = pixels(images)[0].reshape(-1, 3).mean(axis=0)
    assert colour == pytest.approx([expected, 191, 0], abs=4)


def test_a_checkpoint_without_a_map_offers_no_preview(pipeline: SanaPipeline) -> None:
    generation = pipeline.prepare(REQUEST)
    pipeline.step([generation])
    assert pipeline.preview(generation) == []


@pytest.mark.parametrize(
    "tensors", [{"weight": torch.zeros(3, 16), "bias": torch.zeros(3)}, {"bias": torch.zeros(3)}]
)
def test_a_preview_map_that_does_not_fit_is_refused(
    tiny_copy: Path, tensors: dict[str, torch.Tensor]
) -> None:
    save_file(tensors, tiny_copy / PREVIEW_FILE)
    with pytest.raises(CheckpointError, match=rf"{PREVIEW_FILE}: holds .* expected "):
        pipeline_of(tiny_copy)
