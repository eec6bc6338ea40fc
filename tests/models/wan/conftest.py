"""One tiny checkpoint for all tests of the Wan family; tests that change it take a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from models.wan.pipeline import WanVacePipeline
from tests.models.wan.tiny_checkpoint import load, write_checkpoint


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("wan") / "tiny-wan")


@pytest.fixture(scope="session")
def wan_pipeline(tiny_wan: Path) -> WanVacePipeline:
    return load(tiny_wan)


@pytest.fixture
def wan_copy(tiny_wan: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_wan, tmp_path / "copy")
