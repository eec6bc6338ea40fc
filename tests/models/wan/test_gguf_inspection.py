"""Inspection: configuration, deviations, types and memory, all from the header, without torch."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.synthetic_gguf import write_random_model
from config.model_spec import Residency
from models.errors import CheckpointError
from models.wan.gguf_identify import Kind
from models.wan.gguf_inspection import inspect_gguf
from models.wan.transformer_config import expected_shapes
from models.wan.transformer_loading import load_transformer
from models.weights.gguf.file_type import FileType
from models.weights.gguf.format import QuantType
from tests.models.wan.wan_files import CONFIG, write_wan
from tests.models.weights.gguf.handmade import file, record


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_complete_file_gives_its_configuration_and_deviates_nowhere(
    tmp_path: Path, prefix: str
) -> None:
    path = tmp_path / "wan.gguf"
    write_wan(path, rename=lambda name: prefix + name)
    found = inspect_gguf(path)
    assert found.identity.kind is Kind.WAN_VACE
    assert found.file_bytes == path.stat().st_size
    assert found.problem is None
    assert found.architecture is not None
    assert found.architecture.config == CONFIG
    assert not found.architecture.missing
    assert not found.architecture.unexpected
    assert not found.architecture.misshapen


def test_deviating_tensors_are_named(tmp_path: Path) -> None:
    shapes = expected_shapes(CONFIG)
    del shapes["blocks.3.ffn.2.bias"]
    shapes["blocks.1.norm3.weight"] = (7,)
    shapes["blocks.0.img_attn.weight"] = (8, 32)
    write_wan(tmp_path / "wan.gguf", shapes=shapes)
    architecture = inspect_gguf(tmp_path / "wan.gguf").architecture
    assert architecture is not None
    assert architecture.missing == ("blocks.3.ffn.2.bias",)
    assert architecture.unexpected == ("blocks.0.img_attn.weight",)
    assert architecture.misshapen == {"blocks.1.norm3.weight": ((7,), (CONFIG.dim,))}


def test_types_and_memory_add_up(tmp_path: Path) -> None:
    sizes = write_wan(tmp_path / "wan.gguf")
    shapes = expected_shapes(CONFIG)
    quantised = [name for name in shapes if len(shapes[name]) == 2 and "blocks." in name]
    elements = {name: math.prod(shape) for name, shape in shapes.items()}
    found = inspect_gguf(tmp_path / "wan.gguf")
    assert set(found.types) == {QuantType.Q8_0, QuantType.F32}
    q8 = found.types[QuantType.Q8_0]
    assert q8.tensors == len(quantised)
    assert q8.elements == sum(elements[name] for name in quantised)
    assert q8.nbytes == sum(sizes[name] for name in quantised)
    assert sum(use.tensors for use in found.types.values()) == len(shapes)
    assert found.memory == {
        "packed": sum(sizes[name] if name in quantised else 2 * elements[name] for name in shapes),
        "bf16": 2 * sum(elements.values()),
        "fp8": sum(
            elements[name] + 4 * shapes[name][0] if name in quantised else 2 * elements[name]
            for name in shapes
        ),
    }


@pytest.mark.parametrize("file_type", [FileType.Q4_K_M, FileType.F16], ids=str)
@pytest.mark.parametrize("residency", ["packed", "bf16", "fp8"])
def test_memory_is_what_a_loaded_model_takes(
    tmp_path: Path, residency: Residency, file_type: FileType
) -> None:
    path = tmp_path / "wan.gguf"
    write_random_model(path, CONFIG, file_type)
    model = load_transformer(path, device="cpu", dtype=torch.bfloat16, residency=residency)
    taken = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    # Norms and modulations are in float32, which shows in a model this small.
    assert inspect_gguf(path).memory[residency] == pytest.approx(taken, rel=0.03)


def test_a_configuration_that_cannot_be_told_is_a_problem_and_no_failure(tmp_path: Path) -> None:
    shapes = expected_shapes(CONFIG)
    del shapes["patch_embedding.weight"]
    write_wan(tmp_path / "wan.gguf", shapes=shapes)
    found = inspect_gguf(tmp_path / "wan.gguf")
    assert found.architecture is None
    assert found.problem is not None
    assert "'patch_embedding.weight' is missing" in found.problem


def test_a_tensor_under_two_names_is_a_problem(tmp_path: Path) -> None:
    shapes = expected_shapes(CONFIG)
    shapes["blocks.0.attn1.to_q.bias"] = (CONFIG.dim,)
    write_wan(tmp_path / "wan.gguf", shapes=shapes)
    assert inspect_gguf(tmp_path / "wan.gguf").problem == (
        "tensor 'blocks.0.self_attn.q.bias' is stored under two names"
    )


def test_another_model_is_described_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(file([record("x", (2, 4))]))
    found = inspect_gguf(path)
    assert found.identity.kind is Kind.OTHER
    assert (found.architecture, found.problem) == (None, None)
    assert found.memory == {"packed": 16, "bf16": 16, "fp8": 16}


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    write_wan(tmp_path / "wan.gguf")
    data = (tmp_path / "wan.gguf").read_bytes()
    (tmp_path / "wan.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="but the file ends after"):
        inspect_gguf(tmp_path / "wan.gguf")


def test_inspecting_needs_no_tensor_library() -> None:
    code = (
        "import sys, models.wan.gguf_inspection\n"
        "print(*{'torch', 'numpy', 'gguf', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
