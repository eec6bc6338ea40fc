"""What a job computes by itself on the device: encoding before its steps, decoding after them.

Both may run out of memory beside what else is there, and get a second try with everything else
moved out. What comes back is the result or the exception; the engine settles the job by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from models.errors import Cancelled
from models.pipeline import Clip, Generation, Pipeline, Request
from workers import metrics
from workers.device import Device, is_out_of_memory
from workers.failures import attempt
from workers.member import Member
from workers.parking import Parking
from workers.posted_verdicts import PostedVerdicts

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


class SoloStages:
    """Encodes and decodes on one device; `clock` counts seconds. One thread only."""

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        device: Device,
        parking: Parking,
        verdicts: PostedVerdicts,
        clock: Callable[[], float],
    ) -> None:
        self._pipelines = pipelines
        self._device = device
        self._parking = parking
        self._verdicts = verdicts
        self._clock = clock

    def encode(self, member: Member, request: Request) -> Generation | Exception:
        """Everything that is constant over the steps. Raises DeviceLost."""
        prepare = partial(self._prepare, member, request)
        return self._run(member, prepare, seconds_before=member.reading_seconds)

    def decode(self, member: Member) -> list[Image] | Clip | Exception:
        """Latents to pictures or a clip. Raises DeviceLost."""
        return self._run(member, partial(self._decode, member))

    def with_room(self, member: Member, work: Callable[[], T]) -> T | Exception:
        """What comes of `work` for `member`, if need be with everything else moved out."""
        result = attempt(work)
        if isinstance(result, Exception) and is_out_of_memory(result):
            self._parking.clear([member])
            self._device.release_memory()
            result = attempt(work)
        return result

    def _prepare(self, member: Member, request: Request) -> Generation:
        keep_going = self._verdicts.listener([member.job])
        keep_going()
        generation = self._pipelines[member.job.model].prepare(request, keep_going)
        self._device.synchronize()
        return generation

    def _decode(self, member: Member) -> list[Image] | Clip:
        assert member.generation is not None
        keep_going = self._verdicts.listener([member.job])
        keep_going()
        self._parking.fetch([member])
        return self._pipelines[member.job.model].decode(member.generation, keep_going)

    def _run(
        self, member: Member, work: Callable[[], T], *, seconds_before: float = 0.0
    ) -> T | Exception:
        started = self._clock()
        result = self.with_room(member, work)
        seconds = self._clock() - started
        if isinstance(result, Cancelled):
            member.device_seconds += seconds
        elif not isinstance(result, Exception):
            member.count_stage(seconds)
            took = seconds_before + seconds
            metrics.STAGE_SECONDS.labels(member.job.model, member.stage).observe(took)
        return result
