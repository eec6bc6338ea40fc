"""`denoised models quantize`: what it prints, and one line for what it will not do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from denoised.commands.models import app
from denoised.errors import CommandError
from models.errors import CheckpointError
from models.wan.transformer_config import expected_shapes
from models.weights.gguf.file import GgufFile
from models.weights.gguf.format import QuantType
from tests.models.wan.wan_files import CONFIG


def quantize(*arguments: object) -> str:
    arguments_ = ["quantize", *map(str, arguments)]
    result = CliRunner().invoke(app, arguments_, catch_exceptions=False, standalone_mode=False)
    return result.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    random = torch.Generator().manual_seed(0)
    path = tmp_path / "model.safetensors"
    shapes = expected_shapes(CONFIG)
    save_file({name: torch.randn(shapes[name], generator=random) for name in shapes}, path)
    return path


def test_a_file_of_the_type_is_written_and_its_size_told(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "model-q8_0.gguf"
    text = quantize(source, target, "--type", "q8_0")
    size = target.stat().st_size
    assert text.splitlines()[0].startswith(f"{target}: {size / 1e6:.2f} MB, tensors: ")
    assert " Q8_0" in text
    ratio = float(text.splitlines()[1].split("ratio ")[1].split()[0])
    assert ratio == pytest.approx(size / source.stat().st_size, abs=0.002)
    with GgufFile.open(target) as file:
        assert file.tensors["blocks.0.ffn.0.weight"].type is QuantType.Q8_0


@pytest.mark.parametrize(("options", "threads"), [((), 1), (("--threads", 2), 2)])
def test_one_thread_is_used_unless_more_are_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    threads: int,
) -> None:
    used = []

    def convert(*arguments: object, **named: object) -> None:
        used.append(torch.get_num_threads())
        raise CheckpointError("enough")

    monkeypatch.setattr("models.wan.gguf_convert.convert_to_gguf", convert)
    before = torch.get_num_threads()
    try:
        with pytest.raises(CommandError, match="enough"):
            quantize(tmp_path, tmp_path / "a.gguf", "--type", "Q8_0", *options)
    finally:
        torch.set_num_threads(before)
    assert used == [threads]


def test_a_file_that_is_there_is_replaced_by_force_only(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(CommandError, match=r"a\.gguf: exists already; --force replaces it"):
        quantize(source, target, "--type", "Q8_0")
    assert target.read_bytes() == b"precious"
    quantize(source, target, "--type", "Q8_0", "--force")
    assert target.read_bytes()[:4] == b"GGUF"


def test_mistakes_are_told_before_anything_is_read(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    with pytest.raises(
        CommandError, match="'IQ4_XS' cannot be written, expected F16, Q4_0"
    ) as info:
        quantize(nothing, tmp_path / "a.gguf", "--type", "IQ4_XS")
    assert info.value.exit_code == 2
    with pytest.raises(CommandError, match=r"expected a name that ends in \.gguf"):
        quantize(nothing, tmp_path / "a.bin", "--type", "Q8_0")
    with pytest.raises(CommandError, match="nothing: no such file or folder"):
        quantize(nothing, tmp_path / "a.gguf", "--type", "Q8_0")
    assert not list(tmp_path.iterdir())
