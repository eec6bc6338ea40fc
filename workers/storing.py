"""Results on their way to the disk, encoded and stored in the background.

The engine puts a decoded job in and collects, between two steps, what has been stored since, in the
order of decoding. A disk that takes nothing any more is noticed here, since the engine goes on.
What nobody wants any more leaves no files: its job may be deleted, and nothing else remove them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from jobs.types import Output
from models.errors import Cancelled
from models.pipeline import Clip
from workers.background import Background
from workers.failures import attempt
from workers.member import Member
from workers.results import ResultWriter

if TYPE_CHECKING:
    from PIL.Image import Image


STEP_SHARE = 0.1
"""How much of a step's time is waited for a result that has just been decoded."""


class StoringStuck(Exception):
    """No result could be stored for so long that only a new process may help."""


@dataclass(frozen=True)
class Storing:
    """One job's results; times are seconds of the engine's clock.

    `outputs` resolves to what was stored or to the exception that prevented it. While `unwanted` is
    set, no further file is begun.
    """

    member: Member
    outputs: Future[tuple[Output, ...] | Exception]
    decoding_since: float
    storing_since: float
    unwanted: threading.Event


class StoringQueue:
    """First in, first out. `stuck_seconds` is the longest for which no result comes to be stored;
    `clock` counts seconds.
    """

    def __init__(
        self,
        results: ResultWriter,
        background: Background,
        *,
        stuck_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._results = results
        self._background = background
        self._stuck_seconds = stuck_seconds
        self._clock = clock
        self._queue: deque[Storing] = deque()
        self._last_stored_at = clock()

    @property
    def num_images(self) -> int:
        """Images of all results that are not collected yet."""
        return sum(storing.member.num_images for storing in self._queue)

    def put(self, member: Member, media: list[Image] | Clip, *, decoding_since: float) -> None:
        """Have the media encoded and stored."""
        unwanted = threading.Event()

        def keep_going() -> None:
            if unwanted.is_set():
                raise Cancelled

        write = partial(self._results.write, member.job, media, keep_going)
        outputs = self._background.submit(lambda: attempt(write))
        now = self._clock()
        self._queue.append(Storing(member, outputs, decoding_since, now, unwanted))

    def discard(self, member: Member) -> None:
        """Nobody wants the results of `member`: no more of its files are written, and those there
        are removed.

        What was collected is left alone, since its job may have succeeded with it.
        """
        for storing in self._queue:
            if storing.member is member and not storing.unwanted.is_set():
                storing.unwanted.set()
                if not storing.outputs.cancel():
                    # Behind the write in the same thread: no file can come after it.
                    self._background.submit(partial(self._results.remove, member.job))

    def collect(self) -> list[Storing]:
        """What has been stored, or has failed to be, since the last call, and is wanted.

        Raises StoringStuck.
        """
        done = []
        while self._queue and self._queue[0].outputs.done():
            storing = self._queue.popleft()
            if not storing.unwanted.is_set():
                done.append(storing)
            self._last_stored_at = self._clock()
        if self._queue:
            since = max(self._queue[0].storing_since, self._last_stored_at)
            if self._clock() - since > self._stuck_seconds:
                raise StoringStuck(f"no result could be stored for {self._stuck_seconds:g} s")
        return done

    @property
    def pending(self) -> list[Future[tuple[Output, ...] | Exception]]:
        """What has to come next before anything can be collected; empty when nothing is here."""
        return [storing.outputs for storing in self._queue][:1]

    def linger(self, step_seconds: float) -> None:
        """After a `put`: give the result a moment that is short beside a step of `step_seconds`.

        What takes no longer is settled before the next step instead of after it.
        """
        wait(self.pending, timeout=STEP_SHARE * step_seconds)

    def clear(self) -> None:
        """Forget everything; what has not been begun will not be."""
        for storing in self._queue:
            storing.outputs.cancel()
        self._queue.clear()
