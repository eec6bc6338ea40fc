"""Shards belong together by their names, whole sets only."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import CheckpointError
from models.weights.shards import first_shards, shard_files


def shards(folder: Path, stem: str, count: int) -> list[Path]:
    paths = [folder / f"{stem}-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    for path in paths:
        path.touch()
    return paths


def test_each_checkpoint_is_listed_once(tmp_path: Path) -> None:
    first, other = shards(tmp_path, "model", 3), shards(tmp_path, "other", 2)
    alone = tmp_path / "vae.safetensors"
    alone.touch()
    assert first_shards(tmp_path.iterdir()) == [first[0], other[0], alone]


def test_any_shard_leads_to_all(tmp_path: Path) -> None:
    paths = shards(tmp_path, "model", 3)
    for path in paths:
        assert shard_files(path) == tuple(paths)
    assert shard_files(tmp_path / "model.gguf") == (tmp_path / "model.gguf",)


def test_a_missing_shard_is_named_and_the_rest_still_listed_once(tmp_path: Path) -> None:
    paths = shards(tmp_path, "model", 3)
    paths[0].unlink()
    assert first_shards(tmp_path.iterdir()) == [paths[1]]
    with pytest.raises(CheckpointError, match=r"model-00001-of-00003\.safetensors: shard is miss"):
        shard_files(paths[1])


@pytest.mark.parametrize("name", ["m-00003-of-00002.safetensors", "m-00001-of-00000.safetensors"])
def test_a_number_beyond_the_count_is_refused(tmp_path: Path, name: str) -> None:
    shards(tmp_path, "m", 2)
    with pytest.raises(CheckpointError, match=rf"{name}: is no shard of"):
        shard_files(tmp_path / name)
