"""When a job's watchers get to see how far it has come, and what: one small JPEG now and then."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from models.pipeline import Pipeline
from workers.failures import attempt
from workers.member import Member
from workers.thumbnails import preview_jpeg

log = structlog.get_logger(__name__)

STRIP_SIDE = 512
"""Width of a clip's preview in pixels: its frames stand side by side."""


class Previews:
    """Previews at most every `least_seconds` of a job; the clock is the caller's."""

    def __init__(self, pipelines: Mapping[str, Pipeline], least_seconds: float) -> None:
        self._pipelines = pipelines
        self._least_seconds = least_seconds

    def of(self, member: Member, now: float) -> bytes | None:
        """The preview of a job that is due at `now` and can be made; a failure is only logged."""
        if member.last_preview_at is None:
            member.last_preview_at = now
        generation = member.generation
        is_due = now - member.last_preview_at >= self._least_seconds
        if generation is None or generation.is_done or not is_due:
            return None
        member.last_preview_at = now
        pipeline = self._pipelines[member.job.model]
        images = attempt(lambda: pipeline.preview(generation))
        if isinstance(images, Exception):
            log.warning("preview failed", job=member.job.id, error=str(images))
            return None
        if not images:
            return None
        if pipeline.spec.task == "video":
            return preview_jpeg(images, columns=len(images), side=STRIP_SIDE)
        return preview_jpeg(images)
