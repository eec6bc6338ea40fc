"""`denoised models inspect`: the table, the JSON, and one line for what is no sound file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from denoised.commands.models import app
from denoised.errors import CommandError
from models.wan.transformer_config import expected_shapes
from tests.models.wan.wan_files import CONFIG, write_wan
from tests.models.weights.gguf.handmade import file, record, text_entry


def inspect(*arguments: object) -> str:
    arguments_ = ["inspect", *map(str, arguments)]
    result = CliRunner().invoke(app, arguments_, catch_exceptions=False, standalone_mode=False)
    return result.stdout


def rows(text: str) -> dict[str, str]:
    return {line[:15].strip(): line[15:] for line in text.partition("\n\n")[0].splitlines()}


def test_a_sound_file_is_described(tmp_path: Path) -> None:
    path = tmp_path / "wan.gguf"
    write_wan(path, rename=lambda name: f"model.diffusion_model.{name}")
    text = inspect(path)
    found = rows(text)
    assert found["file"].startswith(str(path))
    assert found["holds"] == "Wan VACE transformer"
    assert found["architecture"] == "'wan'"
    assert found["names"] == "original, behind 'model.diffusion_model.'"
    assert found["configuration"].startswith("4 blocks of 256 channels in 2 heads")
    assert "2 VACE blocks," in found["configuration"]
    assert found["missing"] == found["unexpected"] == found["other shapes"] == "none"
    assert [part.split()[0] for part in found["memory"].split(", ")] == ["packed", "bf16", "fp8"]
    types = [line.split() for line in text.partition("\n\n")[2].splitlines()]
    assert {row[0] for row in types} == {"type", "Q8_0", "F32"}
    assert all(len(row) >= 4 for row in types)


def test_long_lists_of_deviations_are_counted(tmp_path: Path) -> None:
    shapes = {n: s for n, s in expected_shapes(CONFIG).items() if not n.endswith(".q.bias")}
    shapes["blocks.1.norm3.weight"] = (7,)
    write_wan(tmp_path / "wan.gguf", shapes=shapes)
    found = rows(inspect(tmp_path / "wan.gguf"))
    assert found["missing"].startswith("12: 'blocks.0.self_attn.q.bias', ")
    assert found["missing"].endswith(", and 2 more")
    assert found["other shapes"] == "1: 'blocks.1.norm3.weight' is [7], expected [256]"


def test_json_has_the_same_and_all_names(tmp_path: Path) -> None:
    path = tmp_path / "wan.gguf"
    shapes = {n: s for n, s in expected_shapes(CONFIG).items() if not n.endswith(".q.bias")}
    write_wan(path, shapes=shapes)
    found = json.loads(inspect(path, "--json"))
    assert found["kind"] == "wan-vace"
    assert found["file_bytes"] == path.stat().st_size
    assert found["configuration"]["dim"] == CONFIG.dim
    assert found["configuration"]["vace_layers"] == list(CONFIG.vace_layers)
    assert len(found["missing"]) == 12
    assert sum(use["tensors"] for use in found["types"].values()) == found["tensors"]
    assert set(found["memory_bytes"]) == {"packed", "bf16", "fp8"}


def test_another_model_is_described_without_its_escapes(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(file([record("x")], [text_entry("general.architecture", "\x1b[31m")]))
    found = rows(inspect(path))
    assert found["holds"] == "another model"
    assert found["architecture"] == r"'\x1b[31m'"
    assert "configuration" not in found


def test_one_of_a_thing_is_counted_as_one(tmp_path: Path) -> None:
    one = dataclasses.replace(CONFIG, num_heads=1, vace_layers=(0,))
    write_wan(tmp_path / "wan.gguf", shapes=expected_shapes(one))
    assert "in 1 head, 512 in between, 1 VACE block," in inspect(tmp_path / "wan.gguf")


def test_what_is_no_sound_file_gets_one_line(tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(CommandError, match=r"f\.gguf: expected a GGUF file, found a zip archive"):
        inspect(path)
    with pytest.raises(CommandError, match="is a folder, expected a GGUF file"):
        inspect(tmp_path)
