"""Fixtures shared by the tests of the models package: tiny checkpoints, written once a session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from models.sana.pipeline import SanaPipeline
from tests.models.runs import pipeline_of
from tests.models.tiny import write_checkpoint


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SanaPipeline folder; shared, so never written to."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-sana")


@pytest.fixture(scope="session")
def pipeline(tiny_checkpoint: Path) -> SanaPipeline:
    """The tiny checkpoint in float32 on the CPU, shared by tests that only run it."""
    return pipeline_of(tiny_checkpoint)


@pytest.fixture
def tiny_copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint for a test to damage or to configure."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny-sana"))
