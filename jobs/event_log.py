"""The event log of a job: entries of its stream, in the order of their ids.

The scripts write the entries, with fragments made here; here they are read back.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.rq_record import FROM_RQ, public_outputs
from jobs.types import EventType, Progress

ENDING_FIELDS = ("status", "final_event", "ended_at", "attempt", "error", "outputs")
"""Fields of the record from which a terminal event can be rebuilt."""


@dataclass(frozen=True)
class Event:
    """One entry of a job's log. `id` orders the entries; `data` is the JSON object of the event."""

    id: str
    type: EventType
    data: dict[str, Any]


def parse_stream_id(text: str) -> tuple[int, int]:
    """A stream id, `<milliseconds>-<sequence>`, in the order Redis gives it.

    Raises `ValueError` for anything else.
    """
    milliseconds, dash, sequence = text.partition("-")
    digits = milliseconds + sequence
    if not (dash and milliseconds and sequence and digits.isascii() and digits.isdecimal()):
        raise ValueError(f"{text[:64]!r} is not an event id")
    position = int(milliseconds), int(sequence)
    # Redis refuses to look for what comes after the largest id of all.
    if max(position) >= (1 << 64) - 1:
        raise ValueError(f"{text[:64]!r} is not an event id")
    return position


def decode_event(entry_id: str, data: bytes) -> Event:
    """An entry as the scripts write and publish it."""
    body = json.loads(data)
    return Event(entry_id, EventType(body["type"]), body)


def remembered_ending(job_id: str, fields: Mapping[str, bytes | None]) -> Event | None:
    """The terminal event rebuilt from the record, for a log that has expired before it.

    None while the job has not ended.
    """
    status = FROM_RQ[(fields["status"] or b"").decode()]
    if not status.is_terminal:
        return None
    data: dict[str, Any] = {
        "type": f"job.{status.value}",
        "job_id": job_id,
        "status": status.value,
        "stage": None,
        "attempt": int(fields["attempt"] or 0),
        "created_at": (fields["ended_at"] or b"").decode(),
    }
    if fields["error"]:
        data["error"] = json.loads(fields["error"])
    if fields["outputs"]:
        data["outputs"] = public_outputs(json.loads(fields["outputs"]))
    return Event((fields["final_event"] or b"").decode(), EventType(data["type"]), data)


def progress_fragment(update: Progress) -> str:
    """What a job.progress event adds to the common fields, as the scripts splice it in."""
    percent = 100 * update.step / update.total_steps if update.total_steps else 0.0
    progress = {
        "step": update.step,
        "total_steps": update.total_steps,
        "percent": round(percent, 1),
        "eta_seconds": None if update.eta_seconds is None else round(update.eta_seconds, 3),
    }
    fragment = f',"progress":{json.dumps(progress)}'
    if update.load is None:
        return fragment
    return f'{fragment},"loading":{json.dumps(asdict(update.load))}'


def preview_fragment(update: Progress) -> str:
    """What a job.preview event adds."""
    preview = {
        "content_type": "image/jpeg",
        "data": base64.b64encode(update.preview or b"").decode(),
        "step": update.step,
    }
    return f',"preview":{json.dumps(preview)}'
