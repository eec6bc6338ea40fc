"""What is planned for a transformer counts everything that will lie beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.synthetic_gguf import VACE_14B, planned_tensors
from models.catalogue import describe
from models.errors import CheckpointError
from models.wan import placement
from models.wan.autoencoder_loading import load_autoencoder
from models.wan.checkpoint import WanVaceCheckpoint
from models.wan.step_memory import TOKENS_TOGETHER, clip_tokens, step_bytes
from models.weights.gguf.file_type import FileType
from models.weights.gguf.format import QuantType
from models.weights.gguf.writer import PlannedTensor
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


# The tensors of the community's Q4_K_M file of 14B, and about those of a UMT5-XXL in Q8_0.
TENSORS_14B = tuple(planned_tensors(VACE_14B, FileType.Q4_K_M))
ENCODER = (PlannedTensor("blocks.0.ffn.fc1.weight", (4096, 1_130_016), QuantType.Q8_0),)


@pytest.fixture
def place_14b(monkeypatch: pytest.MonkeyPatch):
    """Plans 14B in Q4_K_M beside its encoder in Q8_0, default clip 832x480 of 81 frames."""
    headers = {
        "vace.gguf": SimpleNamespace(tensors=TENSORS_14B),
        "umt5.gguf": SimpleNamespace(tensors=ENCODER),
    }
    monkeypatch.setattr(placement, "open_header", lambda path: headers[path.name])
    monkeypatch.setattr(placement, "_autoencoder_bytes", lambda path, variant: 508_000_000)
    checkpoint = SimpleNamespace(
        config=VACE_14B,
        transformer=Path("vace.gguf"),
        text_encoder=Path("umt5.gguf"),
        autoencoder=Path("vae.safetensors"),
    )

    def place(device: str, dtype: torch.dtype, free: float, residency: str | None = None):
        monkeypatch.setattr(placement, "available_host_bytes", lambda: int(free))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(free)))
        monkeypatch.setattr(placement, "supports_fp8", lambda device: False)
        spec = SimpleNamespace(
            width=SimpleNamespace(default=832),
            height=SimpleNamespace(default=480),
            video=SimpleNamespace(num_frames=SimpleNamespace(default=81)),
            residency=residency,
            variant=None,
        )
        return placement.plan_placement(spec, checkpoint, torch.device(device), dtype)

    return place


def test_14b_steps_on_a_24_gb_gpu_with_few_layers_in_host_memory(place_14b):
    plan = place_14b("cuda", torch.bfloat16, 24e9)
    assert plan.mode == "packed"
    assert 0 < plan.offload_layers <= 8


@pytest.mark.parametrize("residency", [None, "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gigabytes", [16, 23, 32])
def test_14b_is_served_packed_on_a_cpu(place_14b, residency, dtype, gigabytes):
    plan = place_14b("cpu", dtype, gigabytes * 1e9 - 2e9, residency)
    assert (plan.mode, plan.offload_layers) == ("packed", 0)


def test_14b_is_not_converted_where_that_does_not_fit_a_cpu(place_14b):
    assert place_14b("cpu", torch.bfloat16, 48e9).mode == "bf16"
    with pytest.raises(CheckpointError, match=r"^vace\.gguf: bf16 weights take 69\.4 GB, but"):
        place_14b("cpu", torch.float32, 62e9, "bf16")


def test_14b_refused_on_a_small_gpu_says_what_would_help(place_14b):
    with pytest.raises(CheckpointError, match=r"num_frames in denoised\.json.*: \"packed\""):
        place_14b("cuda", torch.bfloat16, 12e9)
    assert place_14b("cuda", torch.bfloat16, 12e9, "packed").offload_layers == 48


def test_a_step_counts_two_rows_only_while_the_halves_of_guidance_go_together():
    one = step_bytes(VACE_14B, TOKENS_TOGETHER, 4, is_guided=False)
    assert step_bytes(VACE_14B, TOKENS_TOGETHER, 4) == 2 * one
    assert step_bytes(VACE_14B, TOKENS_TOGETHER, 2, clips=3) == 3 * one
    apart = step_bytes(VACE_14B, TOKENS_TOGETHER + 1, 4)
    assert one < apart < 2 * one
    assert clip_tokens(VACE_14B, width=832, height=480, num_frames=81) == 32_760
    assert clip_tokens(VACE_14B, width=832, height=480, num_frames=1, references=2) == 3 * 1560
