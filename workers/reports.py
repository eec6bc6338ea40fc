"""What jobs report of themselves: step, forecast and, when one is due, a preview.

Members of the engine come in, one `Progress` each goes out, for the sink to send in one round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jobs.types import ModelLoad, Progress, Stage
from workers.finish_speeds import FinishSpeeds
from workers.member import Member
from workers.previews import Previews


class Reports:
    """Reports of the moment at which they are asked for; `clock` counts seconds."""

    def __init__(
        self, previews: Previews, speeds: FinishSpeeds, clock: Callable[[], float]
    ) -> None:
        self._previews = previews
        self._speeds = speeds
        self._clock = clock

    def of(self, members: Sequence[Member], stage: Stage, load: ModelLoad | None) -> list[Progress]:
        """One report a member, in order; `load` is the loading that they wait for."""
        now = self._clock()
        return [
            member.progress(
                stage,
                now,
                preview=self._previews.of(member, now),
                seconds_after=self._speeds.seconds_after(member),
                load=load,
            )
            for member in members
        ]
