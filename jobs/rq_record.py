"""The job hash: RQ's fields and ours, to and from our records.

RQ's tools read it with the JSON serializer: `data` is `[function, null, [], kwargs]`, states keep
RQ's words. We never resolve the function name: `decode_call` compares it with the one name we
submit, so nothing that a stranger queues is ever imported or called. Compressed fields are inflated
up to a limit.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.errors import ForeignJob
from jobs.types import (
    JobFailure,
    JobRecord,
    NewJob,
    Output,
    Priority,
    Stage,
    Status,
    Usage,
)

FUNCTION = "denoised.generate"
"""The only job function; a name in RQ's records, not an importable path."""

MAX_CALL_BYTES = 1 << 20
"""Longest `data` field accepted, after inflation."""

TO_RQ = {
    Status.QUEUED: "queued",
    Status.RUNNING: "started",
    Status.SUCCEEDED: "finished",
    Status.FAILED: "failed",
    Status.CANCELLED: "canceled",
}
FROM_RQ = {word: status for status, word in TO_RQ.items()}


@dataclass(frozen=True)
class Call:
    """What a job asks for, read back from RQ's `data`."""

    model: str
    input: dict[str, Any]


def encode_call(job: NewJob) -> bytes:
    """RQ's `data` for a job: JSON, uncompressed."""
    call: list[Any] = [FUNCTION, None, [], {"model": job.model, "input": job.input}]
    return json.dumps(call, separators=(",", ":"), allow_nan=False).encode()


def decode_call(data: bytes) -> Call:
    """Reads `data`, plain or zlib-compressed as RQ's tools write it.

    Raises `ForeignJob` when it is too long, not JSON, or names any other function.
    """
    raw = _inflate(data)
    try:
        function, instance, args, kwargs = json.loads(raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise ForeignJob("PermissionError: job data is not a call in RQ's JSON format") from error
    if function != FUNCTION or instance is not None or args:
        raise ForeignJob(
            f"PermissionError: job function {str(function)[:200]!r} is not on the allow-list"
        )
    if (
        not isinstance(kwargs, dict)
        or not isinstance(kwargs.get("model"), str)
        or not isinstance(kwargs.get("input"), dict)
    ):
        raise ForeignJob("PermissionError: job data lacks a model and an input")
    return Call(kwargs["model"], kwargs["input"])


def _inflate(data: bytes) -> bytes:
    if data[:1] == b"[":
        raw = data
    else:
        inflater = zlib.decompressobj()
        try:
            raw = inflater.decompress(data, MAX_CALL_BYTES + 1)
        except zlib.error as error:
            raise ForeignJob("PermissionError: job data is neither JSON nor zlib") from error
    if len(raw) > MAX_CALL_BYTES:
        raise ForeignJob(f"PermissionError: job data is longer than {MAX_CALL_BYTES} bytes")
    return raw


def fields_to_dict(flat: Sequence[bytes]) -> dict[str, bytes]:
    """A HGETALL reply as it comes out of a script, with text keys."""
    return {key.decode(): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


@dataclass(frozen=True)
class QueueOutlook:
    """A queued job's place, and when it will start and end, None until that is measured."""

    position: int
    start_at: datetime | None = None
    finish_at: datetime | None = None

    @classmethod
    def of(cls, reply: Sequence[Any]) -> QueueOutlook:
        """From what scripts tell: position, start and end in us or an empty string."""
        position, *times = reply
        start_at, finish_at = (time_from_us(int(time)) if time else None for time in times)
        return cls(max(position, 0), start_at, finish_at)


def record_from_fields(
    job_id: str, fields: Mapping[str, bytes], outlook: QueueOutlook
) -> JobRecord:
    """The record of a job hash. Raises `ForeignJob` when our submit script did not write it."""
    if "submitted_us" not in fields or "data" not in fields:
        raise ForeignJob(f"job {job_id!r} was not submitted here")
    call = decode_call(fields["data"])
    status = FROM_RQ.get(_text(fields, "status"), Status.FAILED)
    outputs = json.loads(_text(fields, "outputs") or "[]")
    error = _text(fields, "error")
    meta = _text(fields, "meta")
    stage = _text(fields, "stage")
    return JobRecord(
        id=job_id,
        owner=_text(fields, "owner"),
        model=call.model,
        status=status,
        stage=Stage(stage) if stage else None,
        attempt=int(_text(fields, "attempt") or 0),
        max_attempts=int(_text(fields, "max_attempts") or 1),
        priority=Priority(_text(fields, "priority")),
        deterministic=_text(fields, "deterministic") == "1",
        cancel_requested="cancel" in fields,
        created_at=time_from_us(int(fields["submitted_us"])),
        started_at=_time(fields, "started_at"),
        finished_at=_time(fields, "ended_at") if status.is_terminal else None,
        worker=_text(fields, "worker_name") or None,
        step=int(_text(fields, "step") or 0),
        total_steps=int(_text(fields, "total_steps") or 0),
        eta_seconds=float(_text(fields, "eta")) if _text(fields, "eta") else None,
        **_queued(outlook) if status is Status.QUEUED else {},
        deadline_at=time_from_us(int(fields["deadline_us"])) if "deadline_us" in fields else None,
        input=call.input,
        metadata=json.loads(meta) if meta else {},
        outputs=tuple(Output.model_validate(output) for output in outputs),
        error=JobFailure.model_validate_json(error) if error else None,
        usage=Usage(
            gpu_seconds=float(_text(fields, "gpu_seconds") or 0),
            steps=int(_text(fields, "steps") or 0),
            resumed_steps=int(_text(fields, "resumed_steps") or 0),
        ),
    )


def new_record(
    job: NewJob, max_attempts: int, submitted_us: int, outlook: QueueOutlook
) -> JobRecord:
    """The record of a job just submitted, without reading it back."""
    deadline_us = None
    if job.deadline_seconds is not None:
        deadline_us = submitted_us + round(job.deadline_seconds * 1e6)
    return JobRecord(
        id=job.id,
        owner=job.owner,
        model=job.model,
        status=Status.QUEUED,
        max_attempts=max_attempts,
        priority=job.priority,
        deterministic=job.deterministic,
        created_at=time_from_us(submitted_us),
        total_steps=job.total_steps,
        **_queued(outlook),
        deadline_at=None if deadline_us is None else time_from_us(deadline_us),
        input=job.input,
        metadata=job.metadata,
    )


def _queued(outlook: QueueOutlook) -> dict[str, Any]:
    return {
        "queue_position": outlook.position,
        "estimated_start_at": outlook.start_at,
        "estimated_finish_at": outlook.finish_at,
    }


def public_outputs(outputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Outputs as events show them: numbered, without their place in the blob store."""
    return [
        {"index": index, **{name: value for name, value in output.items() if name != "key"}}
        for index, output in enumerate(outputs)
    ]


def encode_return_value(outputs: Sequence[Output]) -> str:
    """What RQ's `Result.return_value` gives for a succeeded job: its outputs."""
    value = [output.model_dump(mode="json") for output in outputs]
    return base64.b64encode(json.dumps(value).encode()).decode()


def encode_trace(text: str) -> str:
    """RQ's `exc_string` field of a failed result."""
    return base64.b64encode(zlib.compress(text.encode("utf-8", "replace"))).decode()


def time_from_us(microseconds: int) -> datetime:
    """An instant from microseconds since 1970, UTC, without rounding."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


def parse_time(text: str) -> datetime:
    """An instant as RQ and our scripts write it: `2026-01-31T12:00:00.000000Z`."""
    return datetime.fromisoformat(text)


def _text(fields: Mapping[str, bytes], name: str) -> str:
    return fields.get(name, b"").decode()


def _time(fields: Mapping[str, bytes], name: str) -> datetime | None:
    text = _text(fields, name)
    return parse_time(text) if text else None
