"""Sources and checkpoints of jobs on their way into memory, opened and decoded in the background.

A clip of a minute takes seconds to decode, in which the device would stand still, and a disk in
trouble is waited for. So the engine puts a claimed job in and goes on stepping the others; between
two steps it takes out the most urgent job whose request is complete. Each reader holds at most one
job's decoded sources, from their first frame until they are taken, which bounds the memory; more
jobs than readers wait, the most urgent first. What needs no file is a request at once. A disk that
gives nothing any more is noticed here, since the engine goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from config.model_spec import ModelSpec
from jobs.types import ClaimedJob
from models.pipeline import Request
from workers.background import Background
from workers.failures import attempt
from workers.inputs import InputReader
from workers.member import RANKS, Member

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
FetchState = Callable[[ClaimedJob], State | None]
"""Reads the state that a job goes on from, if there is one; from any thread."""


class ReadingStuck(Exception):
    """A job's sources could not be read for so long that only a new process may help."""


@dataclass(frozen=True)
class Read:
    """A job whose sources are in memory: its request, and the state it goes on from, if any; or the
    exceptions that prevented that.
    """

    member: Member
    request: Request | Exception
    state: State | Exception | None
    seconds: float


@dataclass(eq=False)
class _Reading:
    """A reader at work, in vain (not `is_wanted`) once the job has gone."""

    member: Member
    reader: Background
    since: float
    read: Future[Read]
    is_wanted: bool = True

    @property
    def rank(self) -> int:
        return RANKS[self.member.job.priority]


class ReadingQueue:
    """One job for each of `readers`, of which each does one thing at a time.

    `stuck_seconds` is the longest that one job's sources may take; `clock` counts seconds.
    """

    def __init__(
        self,
        inputs: InputReader,
        readers: Sequence[Background],
        *,
        stuck_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._inputs = inputs
        self._stuck_seconds = stuck_seconds
        self._clock = clock
        self._idle = [*readers]
        self._waiting: list[tuple[Member, ModelSpec, FetchState]] = []
        self._readings: list[_Reading] = []

    @property
    def members(self) -> list[Member]:
        """Whose sources are not taken out yet."""
        return [m for m, _, _ in self._waiting] + [r.member for r in self._readings if r.is_wanted]

    @property
    def pending(self) -> list[Future[Read]]:
        """What has to come next before anything can be taken out; empty when nobody is here."""
        return [r.read for r in self._readings] if self.members else []

    def open_ranks(self, num_ranks: int) -> int:
        """Classes that may be claimed now, all `num_ranks` while a reader is free.

        After that, only what is more urgent than everything here: it is read next, and what would
        have to wait behind the others stays queued, where another worker can take it.
        """
        ranks = [RANKS[m.job.priority] for m in self.members]
        return min(ranks, default=num_ranks) if len(ranks) >= self._num_readers else num_ranks

    def put(self, member: Member, spec: ModelSpec, fetch: FetchState) -> Read | None:
        """Have sources and state of a job read; what needs no reading comes back at once."""
        if member.job.checkpoint is None and not self._inputs.has_sources(member.job, spec):
            return self._read(member, spec, fetch)
        self._waiting.append((member, spec, fetch))
        self._go_on()
        return None

    def take(self) -> Read | None:
        """The most urgent job that has been read; None while there is none.

        Raises ReadingStuck.
        """
        now = self._clock()
        if any(not r.read.done() and now - r.since > self._stuck_seconds for r in self._readings):
            raise ReadingStuck(f"sources could not be read for {self._stuck_seconds:g} s")
        ready = [r for r in self._readings if r.is_wanted and r.read.done()]
        taken = min(ready, key=lambda reading: reading.rank, default=None)
        if taken is not None:
            self._release(taken)
        self._go_on()
        return None if taken is None else taken.read.result()

    def discard(self, member: Member) -> None:
        """Forget a job, if it is here. A reader that is at it is free again once that is done."""
        self._waiting = [w for w in self._waiting if w[0] is not member]
        for reading in self._readings:
            if reading.member is member:
                reading.is_wanted = False

    @property
    def _num_readers(self) -> int:
        return len(self._idle) + len(self._readings)

    def _go_on(self) -> None:
        """Give free readers the most urgent of those who wait."""
        for reading in [r for r in self._readings if not r.is_wanted and r.read.done()]:
            self._release(reading)
        while self._waiting and self._idle:
            first = min(self._waiting, key=lambda waiting: RANKS[waiting[0].job.priority])
            self._waiting.remove(first)
            reader = self._idle.pop()
            read = reader.submit(partial(self._read, *first))
            self._readings.append(_Reading(first[0], reader, self._clock(), read))

    def _release(self, reading: _Reading) -> None:
        self._readings.remove(reading)
        self._idle.append(reading.reader)

    def _read(self, member: Member, spec: ModelSpec, fetch: FetchState) -> Read:
        started = self._clock()
        request = attempt(partial(self._inputs.request, member.job, spec))
        state = attempt(partial(fetch, member.job))
        return Read(member, request, state, self._clock() - started)
