"""From exceptions to the failures that clients see, without keeping tensors alive on the way."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

from jobs.types import ClaimedJob, ErrorCode, JobFailure, Outcome, Stage, Status, Usage
from workers.device import DeviceLost, is_device_lost, is_out_of_memory
from workers.inputs import InputError

_MAX_MESSAGE = 300

T = TypeVar("T")


def attempt(work: Callable[[], T]) -> T | Exception:
    """The result of `work`, or the exception it raised.

    The exception's frames are emptied: what they held on the device must be free before anything
    is tried again. Raises DeviceLost when the process cannot use the device any more.
    """
    try:
        return work()
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        if is_device_lost(error):
            raise DeviceLost(_first_line(error)) from error
        return error


def failure_of(error: Exception, stage: Stage, job: ClaimedJob) -> JobFailure:
    """What a client learns about an error in `stage`: code, one line, whether to try again."""
    if isinstance(error, InputError):
        return JobFailure(code=ErrorCode.INVALID_INPUT, message=str(error), param=error.param)
    if is_out_of_memory(error):
        message = f"out of memory while {stage} {_size_of(job)}; ask for fewer or smaller ones"
        return JobFailure(code=ErrorCode.OUT_OF_MEMORY, message=message, retryable=True)
    message = f"{stage} failed: {one_line(error)}"
    return JobFailure(
        code=ErrorCode.INTERNAL, message=message, retryable=isinstance(error, OSError)
    )


def one_line(error: Exception) -> str:
    """What kind of error it is and what it says."""
    return f"{type(error).__name__}: {_first_line(error)}"


def cancelled(usage: Usage) -> Outcome:
    """The end of a job whose client asked for it."""
    failure = JobFailure(code=ErrorCode.CANCELLED, message="cancelled on request")
    return Outcome(Status.CANCELLED, failure=failure, usage=usage)


def _size_of(job: ClaimedJob) -> str:
    size = f"{job.input['width']}x{job.input['height']} pixels"
    if "num_frames" in job.input:
        return f"{job.input['num_frames']} frame(s) of {size}"
    return f"{job.input['num_images']} image(s) of {size}"


def _first_line(error: Exception) -> str:
    # An OSError's text ends with the path, which is nobody's business outside this machine.
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = text.strip().splitlines()
    return lines[0][:_MAX_MESSAGE] if lines else "no message"
