"""What can go wrong in the job layer, as types a caller can branch on.

`server` turns each into one problem response; workers and the keeper let `StoreUnavailable` end
what they were doing once Redis has been away too long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from redis import exceptions as redis_errors

UNREACHABLE: tuple[type[Exception], ...] = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.ReadOnlyError,
    redis_errors.OutOfMemoryError,
)
"""Redis errors that say "not now" rather than "you asked for something wrong"."""


def is_away(error: Exception) -> bool:
    """Whether `error` says "not now": one of `UNREACHABLE`, or that Redis cannot write its disk."""
    return isinstance(error, UNREACHABLE) or str(error).startswith("MISCONF")


class JobError(Exception):
    """Base of everything the job layer raises on purpose."""


@dataclass(frozen=True)
class FieldError:
    """One refused field: its dotted path (`input.width`) and what it may hold."""

    param: str
    message: str


class InvalidInput(JobError):
    """A request field is missing, unknown or out of range.

    `param` and `message` describe the first bad field, `errors` all of them.
    """

    def __init__(self, param: str, message: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(message)
        self.param = param
        self.message = message
        self.errors = tuple(errors) or (FieldError(param, message),)


class QueueFull(JobError):
    """As many jobs wait as are allowed. `retry_after` is in whole seconds, at least 1."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class DiskFull(JobError):
    """The blob store has no room for what clients send."""


class QuotaExceeded(JobError):
    """The API key has as many jobs waiting, or has had as much today, as it may.

    `quota` is its name in `jobs.api_keys.Quotas`; `retry_after` is in whole seconds, at least 1.
    """

    def __init__(self, quota: str, limit: float, retry_after: int) -> None:
        super().__init__(f"{quota} is {limit:g}; try again in {retry_after} s")
        self.quota = quota
        self.limit = limit
        self.retry_after = retry_after


class DeadlineTooSoon(JobError):
    """By what has been measured the job cannot end in time; durations are seconds.

    `needed` is the estimate from submission to end, `run` of that the time it runs.
    """

    def __init__(self, deadline: float, needed: float, run: float) -> None:
        super().__init__(f"the job would end in about {needed:.3g} s, not within {deadline:g} s")
        self.deadline = deadline
        self.needed = needed
        self.run = run


class IdempotencyConflict(JobError):
    """The idempotency key was used before with another request; `job_id` is what it made."""

    def __init__(self, job_id: str) -> None:
        super().__init__("this idempotency key was used with a different request")
        self.job_id = job_id


class JobNotFound(JobError):
    """No such job, or its time to live has ended."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id!r}")
        self.job_id = job_id


class JobActive(JobError):
    """The job has not ended, so it cannot be deleted; cancel it first."""

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(f"job {job_id!r} is {status}; cancel it first")
        self.job_id = job_id
        self.status = status


class StoredFileNotFound(JobError):
    """No such upload, or its time to live has ended."""

    def __init__(self, file_id: str) -> None:
        super().__init__(f"no file {file_id!r}")
        self.file_id = file_id


class ApiKeyNotFound(JobError):
    """No such API key, or it has been revoked."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"no API key {key_id!r}")
        self.key_id = key_id


class FileTooLarge(JobError):
    """More bytes came than one file may have."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the file has more than {max_bytes} bytes")
        self.max_bytes = max_bytes


class ForeignJob(JobError):
    """A record in RQ's format that did not come from our submit script; never run."""


class StoreUnavailable(JobError):
    """Redis cannot be reached."""


class RedisUnavailable(JobError):
    """No Redis could be started here; the message is one line fit for a terminal."""


@contextmanager
def store_errors() -> Iterator[None]:
    """Turns Redis being away into `StoreUnavailable`; errors of our own making pass through."""
    try:
        yield
    except redis_errors.RedisError as error:
        if not is_away(error):
            raise
        raise StoreUnavailable(f"Redis cannot be reached: {error}") from error
