"""Telling those who wait that their model is being loaded, from its beginning to its end.

At the beginning the jobs in the queue get an event with bytes and seconds, and what is known stays
in Redis for jobs that come meanwhile; the heartbeat announces `loading`, which keeps that alive. At
the end it is taken away. None of this is worth a failed load: without Redis nobody is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog

from jobs.errors import StoreUnavailable
from jobs.types import ModelLoad

log = structlog.get_logger(__name__)


class Noticeboard(Protocol):
    """What of `jobs.lease.LeaseClient` is needed here."""

    def tell_loading(self, model: str, load: ModelLoad) -> int:
        """Tell jobs that wait for a model that it is being loaded."""

    def tell_loaded(self, model: str) -> None:
        """Tell no further ones."""


class LoadNotices:
    """One worker's notices. `loading` is the model whose load is under way, for any thread."""

    def __init__(self, board: Noticeboard) -> None:
        self.loading: str | None = None
        self._board = board

    @contextmanager
    def during(self, model: str, load: ModelLoad) -> Iterator[None]:
        """Around the load of a model."""
        self.loading = model
        try:
            with _optional(model):
                self._board.tell_loading(model, load)
            yield
        finally:
            self.loading = None
            with _optional(model):
                self._board.tell_loaded(model)


@contextmanager
def _optional(model: str) -> Iterator[None]:
    try:
        yield
    except StoreUnavailable as error:
        log.warning("could not tell about a load", model=model, reason=str(error))
