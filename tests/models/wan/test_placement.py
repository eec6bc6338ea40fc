"""What is planned for a transformer counts everything that will lie beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.catalogue import describe
from models.errors import CheckpointError
from models.wan import placement
from models.wan.autoencoder_loading import load_autoencoder
from models.wan.checkpoint import WanVaceCheckpoint
from models.weights.residency import choose_residency

CPU = torch.device("cpu")


def test_room_is_left_for_the_text_encoder_and_the_autoencoder(
    wan_pipeline, tiny_wan: Path, monkeypatch
):
    spec, checkpoint = describe(tiny_wan), WanVaceCheckpoint.read(tiny_wan)
    given = {}

    def noted(**sizes):
        given.update(sizes)
        return choose_residency(**sizes)

    monkeypatch.setattr(placement, "choose_residency", noted)
    monkeypatch.setattr(placement, "available_host_bytes", lambda: 10**9)
    placement.plan_placement(spec, checkpoint, CPU, torch.float32)
    # Without its embedding table, which stays in the mapped file.
    encoder = wan_pipeline.text_encoder._encoder._model
    text = sum(parameter.nbytes for parameter in encoder.parameters())
    autoencoder = sum(parameter.nbytes for parameter in wan_pipeline.autoencoder.parameters())
    assert given["free_bytes"] == 10**9 - text - autoencoder
    assert given["bf16_bytes"] == sum(p.nbytes for p in wan_pipeline.transformer.parameters())

    monkeypatch.setattr(placement, "available_host_bytes", lambda: text)
    with pytest.raises(CheckpointError, match="GB of text encoder and autoencoder"):
        placement.plan_placement(spec, checkpoint, CPU, torch.float32)


@pytest.mark.parametrize("kind", ["folder", "safetensors", "pth"])
def test_an_autoencoder_in_half_precision_is_counted_as_it_will_be_loaded(
    tiny_wan: Path, tmp_path: Path, kind: str
):
    stored = tiny_wan / "vae" / "diffusion_pytorch_model.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(stored).items()}
    folder = shutil.copytree(tiny_wan / "vae", tmp_path / "vae")
    # Beside it lies the plain copy, which is not the one that is asked for.
    path, variant = folder, "fp16"
    if kind == "folder":
        save_file(halves, folder / "diffusion_pytorch_model.fp16.safetensors")
    elif kind == "safetensors":
        path = tmp_path / "vae.safetensors"
        save_file(halves, path)
    else:
        path = tmp_path / "vae.pth"
        torch.save(halves, path)
    loaded = load_autoencoder(path, device=CPU, variant=variant)
    taken = sum(parameter.nbytes for parameter in loaded.parameters())
    assert placement._autoencoder_bytes(path, variant) == taken


@pytest.mark.parametrize(
    ("mode", "dtype", "expected"),
    [
        ("bf16", torch.bfloat16, "bf16"),
        ("bf16", torch.float32, "float32"),
        ("packed", torch.bfloat16, "bf16"),
        ("fp8", torch.bfloat16, "fp8"),
    ],
)
def test_unquantised_files_report_what_their_weights_became(tiny_wan, mode, dtype, expected):
    checkpoint = WanVaceCheckpoint.read(tiny_wan)
    assert placement.resting_form(checkpoint, mode, dtype) == expected
