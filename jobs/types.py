"""The vocabulary of the job layer: states, events, records and the messages workers exchange.

Everything here is plain data. `JobRecord` is what watchers see, `NewJob` what a submitter hands in,
`ClaimedJob` what a worker receives, `Progress` and `Outcome` what it sends back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Status(StrEnum):
    """Where a job stands. The last three are terminal and written exactly once."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self not in (Status.QUEUED, Status.RUNNING)


class Stage(StrEnum):
    """What a running job is doing."""

    LOADING = "loading"
    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"
    STORING = "storing"


class Priority(StrEnum):
    """Classes in order of urgency; a worker serves the first non-empty one."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


class ErrorCode(StrEnum):
    """Why a job or a request failed, for programs to branch on."""

    INVALID_INPUT = "invalid_input"
    UNSUPPORTED_MODEL = "unsupported_model"
    UNSAFE_CONTENT = "unsafe_content"
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_LOST = "worker_lost"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    QUOTA_EXCEEDED = "quota_exceeded"
    OVERLOADED = "overloaded"
    INTERNAL = "internal"


class EventType(StrEnum):
    """Names in the event stream of a job."""

    QUEUED = "job.queued"
    STARTED = "job.started"
    PROGRESS = "job.progress"
    PREVIEW = "job.preview"
    REQUEUED = "job.requeued"
    RESTARTED = "job.restarted"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in (EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED)


class JobFailure(BaseModel):
    """The `error` of a failed or cancelled job."""

    model_config = ConfigDict(frozen=True)

    code: ErrorCode
    message: str
    param: str | None = None
    retryable: bool = False


class Output(BaseModel):
    """One stored result. `key` addresses the blob store and is not shown to clients.

    `codec` and what follows it up to `duration_seconds` are None for pictures; `variants` names the
    smaller forms stored beside it (`jobs.blobs.variant_key`).
    """

    model_config = ConfigDict(frozen=True)

    key: str
    content_type: str
    width: int
    height: int
    bytes: int
    sha256: str
    seed: int
    codec: str | None = None
    num_frames: int | None = None
    fps: float | None = None
    duration_seconds: float | None = None
    variants: tuple[str, ...] = ()


class Usage(BaseModel):
    """What the job cost: seconds of device time over all attempts, denoise steps taken, saved.

    `resumed_steps` counts what attempts did not have to take again, thanks to checkpoints. Of a
    killed attempt all counts up to its last checkpoint.
    """

    model_config = ConfigDict(frozen=True)

    gpu_seconds: float = 0.0
    steps: int = 0
    resumed_steps: int = 0


class JobRecord(BaseModel):
    """One job as Redis knows it."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str = Field(default="", description="Id of the API key it came with; empty for none.")
    model: str
    status: Status
    stage: Stage | None = None
    attempt: int = 0
    max_attempts: int = 3
    priority: Priority = Priority.STANDARD
    deterministic: bool = False
    cancel_requested: bool = False
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    worker: str | None = None
    step: int = 0
    total_steps: int = 0
    eta_seconds: float | None = Field(default=None, description="None until measured.")
    queue_position: int | None = Field(default=None, description="0 is next; None unless queued.")
    estimated_start_at: datetime | None = Field(
        default=None, description="None unless queued, and until measured."
    )
    estimated_finish_at: datetime | None = None
    deadline_at: datetime | None = None
    input: dict[str, Any]
    metadata: dict[str, Any] = Field(default_factory=dict)
    outputs: tuple[Output, ...] = ()
    error: JobFailure | None = None
    usage: Usage = Usage()


@dataclass(frozen=True)
class NewJob:
    """A validated submission: `input` is fully resolved, every field set."""

    id: str
    model: str
    input: dict[str, Any]
    total_steps: int
    priority: Priority = Priority.STANDARD
    deterministic: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    owner: str = ""
    deadline_seconds: float | None = None
    idempotency_key: str | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """Where a job can be gone on with: after `step` denoise steps, from the blob at `key`.

    `sha256` is the digest of the blob's bytes, in hexadecimal.
    """

    key: str
    step: int
    sha256: str


@dataclass(frozen=True)
class ClaimedJob:
    """A job under this worker's lease. `execution_id` is the fencing token of this attempt.

    `checkpoint` is where an earlier attempt has got to, None for a job without one.
    """

    id: str
    model: str
    input: dict[str, Any]
    priority: Priority
    deterministic: bool
    attempt: int
    execution_id: str
    queue: str
    created_at: datetime
    queued_seconds: float
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class ModelLoad:
    """The loading that a job waits for: its bytes and seconds, these None until measured."""

    bytes: int
    eta_seconds: float | None


@dataclass(frozen=True)
class Progress:
    """One report about a claimed job. `preview` is an encoded JPEG, `load` given while loading.

    Without `event` it fences, extends the lease and brings the verdict, but tells no watcher.
    """

    job: ClaimedJob
    stage: Stage
    step: int
    total_steps: int
    eta_seconds: float | None = None
    preview: bytes | None = None
    event: bool = True
    load: ModelLoad | None = None


class Verdict(StrEnum):
    """What a worker must do with a job after it reported or beat its heart."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    LEASE_LOST = "lease_lost"


@dataclass(frozen=True)
class StageCosts:
    """Seconds that the stages of one job took.

    `step` is one denoise step as it passed, `device_step` the job's share of the device time of
    one, which others in its batch make less.
    """

    encoding: float
    step: float
    device_step: float
    decoding: float
    storing: float


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: `status` is terminal; outputs when succeeded, failure otherwise.

    `costs` of one that succeeded are what estimates learn from.
    """

    status: Status
    outputs: tuple[Output, ...] = ()
    failure: JobFailure | None = None
    usage: Usage = field(default_factory=Usage)
    costs: StageCosts | None = None
