"""RQ's `Job` for our queues, for people who point RQ's own tools at them.

With it (`--job-class jobs.rq_job.DenoiseJob`) records can be fetched and shown. It never imports or
calls what a record names: every function and callback is refused, because our jobs run only in our
worker.
"""

from __future__ import annotations

from typing import Any, NoReturn

from rq.job import Job
from rq.serializers import JSONSerializer

from jobs.rq_record import FUNCTION


class DenoiseJob(Job):
    """A job record that can be read but not executed. Uses RQ's JSON serializer."""

    def __init__(
        self, id: str | None = None, connection: Any = None, serializer: Any = None
    ) -> None:
        super().__init__(id, connection=connection, serializer=serializer or JSONSerializer)

    @property
    def func(self) -> NoReturn:
        if self.func_name == FUNCTION:
            raise PermissionError(f"{FUNCTION} runs in a denoised worker, not in an RQ worker")
        raise PermissionError(f"job function {self.func_name!r} is not on the allow-list")

    @property
    def success_callback(self) -> None:
        return _refuse(self._success_callback_name)

    @property
    def failure_callback(self) -> None:
        return _refuse(self._failure_callback_name)

    @property
    def stopped_callback(self) -> None:
        return _refuse(self._stopped_callback_name)


def _refuse(name: str | None) -> None:
    if name:
        raise PermissionError(f"callback {name!r} is not on the allow-list")
