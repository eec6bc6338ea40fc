"""A real Sana checkpoint with random weights, small enough to load in every run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.tiny import write_checkpoint


@pytest.fixture(scope="session")
def tiny_sana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder in diffusers' layout."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-sana")
