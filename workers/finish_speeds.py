"""How long it takes from the last step to the stored files: measured, for the ETA of others."""

from __future__ import annotations

from jobs.types import Stage
from workers import metrics
from workers.member import Member
from workers.storing import Storing


class FinishSpeeds:
    """Seconds per finished pixel of every model, the newest result counting half."""

    def __init__(self) -> None:
        self._seconds_per_pixel: dict[str, float] = {}

    def observe(self, stored: Storing, now: float) -> None:
        """Learn from a job whose result has just been stored."""
        model = stored.member.job.model
        metrics.STAGE_SECONDS.labels(model, Stage.STORING).observe(now - stored.storing_since)
        newest = (now - stored.decoding_since) / stored.member.num_pixels
        known = self._seconds_per_pixel.get(model, newest)
        self._seconds_per_pixel[model] = (known + newest) / 2

    def seconds_after(self, member: Member) -> float:
        """Expected seconds from the job's last step to its stored files; 0 until measured."""
        return member.num_pixels * self._seconds_per_pixel.get(member.job.model, 0.0)

    def is_late(self, member: Member, seconds: float) -> bool:
        """Whether a job needs more than `seconds` to its end even alone, as far as measured."""
        if member.generation is None:
            return False
        return member.least_seconds(self.seconds_after(member)) > seconds
