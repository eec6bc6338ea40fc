"""A real Sana checkpoint, small enough to load in every run; signal handlers left as they were."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.tiny import write_checkpoint


@pytest.fixture(scope="session")
def tiny_sana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder in diffusers' layout."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-sana")


@pytest.fixture
def keep_signal_handlers() -> Iterator[None]:
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
