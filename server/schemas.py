"""The public JSON documents, as the API promises them in openapi.yaml.

Times are RFC 3339 in UTC, durations seconds, sizes bytes. Links are references relative to the
server's root, to be resolved against the URL of the request.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints

from jobs.types import ErrorCode, EventType, Priority, Stage, Status
from server import examples

MAX_DEADLINE_SECONDS = 30 * 86_400
MAX_METADATA_KEYS = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_VALUE_CHARS = 512


def rfc3339(moment: datetime) -> str:
    """An aware time as RFC 3339 in UTC with milliseconds, ending in Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Time = Annotated[
    datetime,
    PlainSerializer(rfc3339, return_type=str, when_used="json"),
]


class PublicModel(BaseModel):
    """Base of everything sent to clients."""

    model_config = ConfigDict(frozen=True)


MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=MAX_METADATA_KEY_CHARS)]
MetadataValue = Annotated[str, StringConstraints(max_length=MAX_METADATA_VALUE_CHARS)]


class JobRequest(BaseModel):
    """A submission. What `input` may hold is the JSON Schema under `/v1/models/{id}`."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [examples.JOB_REQUEST]},
    )

    model: str = Field(description="Id of a model under `/v1/models`.")
    input: dict[str, Any] = Field(description="The model's request fields; the prompt at least.")
    priority: Annotated[Priority, Field(strict=False)] = Priority.STANDARD
    deterministic: bool = Field(
        default=False,
        description="A batch of its own: the same input gives the same bytes on the same device "
        "and version, at the cost of throughput.",
    )
    deadline_seconds: float | None = Field(
        default=None,
        gt=0,
        le=MAX_DEADLINE_SECONDS,
        allow_inf_nan=False,
        description="From the submission. Refused when by what has been measured the job cannot "
        "end in time; else it fails with `deadline_exceeded` if it waits for longer, or at the "
        "next denoise step if it runs for longer.",
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict,
        max_length=MAX_METADATA_KEYS,
        description="Kept with the job and given back; not read by the server.",
    )


class QueuePlace(PublicModel):
    """Where a queued job stands."""

    position: int = Field(ge=0, description="Jobs of this model that would be served before it.")
    estimated_start_at: Time | None = Field(
        default=None, description="By what has been measured; null until then."
    )
    estimated_finish_at: Time | None = Field(
        default=None, description="By what has been measured; null until then."
    )


class JobProgress(PublicModel):
    """Denoise steps done. `eta_seconds` is null until the speed has been measured."""

    step: int
    total_steps: int
    percent: float = Field(ge=0, le=100)
    eta_seconds: float | None


class JobOutput(PublicModel):
    """One result; `url` gives the bytes."""

    index: int
    url: str = Field(examples=["/v1/jobs/job_…/outputs/0"])
    content_type: str = Field(examples=["image/png"])
    width: int
    height: int
    bytes: int
    sha256: str
    seed: int = Field(description="With this seed and num_images 1 the input gives this output.")
    codec: str | None = Field(
        default=None, description="Of a clip: how it is coded.", examples=["h264"]
    )
    num_frames: int | None = Field(default=None, description="Of a clip.")
    fps: float | None = Field(default=None, description="Of a clip: frames a second.")
    duration_seconds: float | None = Field(default=None, description="Of a clip.")
    variants: list[str] = Field(
        default_factory=list,
        description="Smaller forms, JPEGs under `url` with `?variant=`: `thumbnail`, and of a clip "
        "`frames`, some of its frames side by side.",
    )


class JobError(PublicModel):
    """Why a job failed. `retryable` says whether the same request may succeed later."""

    code: ErrorCode
    message: str
    param: str | None
    retryable: bool


class JobUsage(PublicModel):
    """What the job cost over all attempts; of a killed one, up to its last checkpoint."""

    gpu_seconds: float
    steps: int = Field(description="Denoise steps taken.")
    resumed_steps: int = Field(
        description="Denoise steps that attempts went on from instead of taking them again."
    )


class JobLinks(PublicModel):
    """Where to go on from here."""

    self: str
    events: str
    cancel: str
    outputs: list[str]


class Job(PublicModel):
    """A job as clients see it. `input` is fully resolved and can be submitted again as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.JOB]})

    id: str
    object: Literal["job"] = "job"
    model: str
    status: Status
    stage: Stage | None = Field(description="What a running job is doing.")
    attempt: int = Field(description="How often a worker has taken the job; 0 while it is new.")
    priority: Priority
    deterministic: bool
    cancel_requested: bool
    created_at: Time
    deadline_at: Time | None = Field(default=None, description="When it is too late for it.")
    started_at: Time | None
    finished_at: Time | None
    queue: QueuePlace | None = Field(description="Only while queued.")
    progress: JobProgress
    input: dict[str, Any]
    outputs: list[JobOutput]
    error: JobError | None
    usage: JobUsage
    links: JobLinks
    metadata: dict[str, Any]


class Estimate(PublicModel):
    """What a job of this input would take. What has not been measured is null."""

    object: Literal["estimate"] = "estimate"
    model: str
    seconds: float | None = Field(description="From its start to its end.")
    gpu_seconds: float | None = Field(description="Device time; what fairness and quotas count.")
    memory_bytes: int | None = Field(
        description="Device memory of the model's weights, as a worker that holds it has measured "
        "it; the job's own tensors come on top. null while none has: always so on a CPU."
    )
    input: dict[str, Any] = Field(description="Fully resolved, as a job's would be.")


class Preview(PublicModel):
    """A small picture of the result as far as it has come."""

    content_type: str
    data: str = Field(description="Base64.")
    step: int


class ModelLoading(PublicModel):
    """The loading of a model that a job waits for."""

    bytes: int = Field(description="Size of what is loaded.")
    eta_seconds: float | None = Field(description="From the event on; null until measured.")


class JobEvent(PublicModel):
    """The `data` of a server-sent event; its `event` field is `type`, its `id` resumes after it."""

    model_config = ConfigDict(extra="forbid")

    type: EventType
    job_id: str
    status: Status
    stage: Stage | None
    attempt: int
    created_at: Time = Field(description="When it happened.")
    worker: str | None = Field(default=None, description="job.started: who took the job.")
    progress: JobProgress | None = Field(default=None, description="job.progress")
    loading: ModelLoading | None = Field(
        default=None, description="job.progress in the stage `loading`: the model is not resident."
    )
    preview: Preview | None = Field(default=None, description="job.preview")
    cause: str | None = Field(
        default=None,
        description="job.requeued: why, e.g. `worker_died`, `lease_lapsed` or `drained`. "
        "job.restarted: what is wrong with the checkpoint, `checkpoint_missing`, "
        "`checkpoint_damaged`, `checkpoint_foreign` (of another model or version) or "
        "`checkpoint_unreadable` (in every attempt).",
    )
    step: int | None = Field(
        default=None,
        description="job.requeued: the step it goes on from, 0 without a checkpoint. "
        "job.restarted: 0.",
    )
    outputs: list[JobOutput] | None = Field(default=None, description="job.succeeded")
    error: JobError | None = Field(default=None, description="job.failed, job.cancelled")


class JobList(PublicModel):
    """One page of jobs, newest first. `next_cursor` asks for the next one."""

    object: Literal["list"] = "list"
    data: list[Job]
    has_more: bool
    next_cursor: str | None


class FileLinks(PublicModel):
    """Where to go on from here."""

    self: str
    content: str


class StoredFile(PublicModel):
    """An upload and what is in it: upright and without alpha."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.FILE]})

    id: str
    object: Literal["file"] = "file"
    kind: Literal["image", "video"]
    content_type: str = Field(examples=["video/mp4"])
    bytes: int
    sha256: str
    filename: str | None
    purpose: str | None
    width: int
    height: int
    num_frames: int
    fps: float | None = Field(
        description="null for a picture; the average where the frame rate varies."
    )
    duration_seconds: float | None = Field(description="null for a picture.")
    has_alpha: bool = Field(description="Transparent parts become white when it is used.")
    rotation: int = Field(
        description="Degrees counterclockwise that the file asks to be turned by; applied when it "
        "is used, and in `width` and `height`."
    )
    created_at: Time
    expires_at: Time
    links: FileLinks


class FileList(PublicModel):
    """One page of files, newest first. `next_cursor` asks for the next one."""

    object: Literal["list"] = "list"
    data: list[StoredFile]
    has_more: bool
    next_cursor: str | None


class Residency(PublicModel):
    """Whether some worker has the model in memory."""

    state: Literal["resident", "on_demand", "loading", "unavailable"] = Field(
        description="`on_demand`: a worker loads it when jobs wait for it."
    )
    mode: str | None = Field(
        default=None,
        description="How the weights rest in memory: `packed` as in a quantised file, `fp8`, or "
        "the name of a number format; null unless resident.",
        examples=["packed"],
    )
    memory_bytes: int | None = Field(
        default=None,
        description="Device memory of the weights; null unless resident, and where a worker cannot "
        "measure it, as on a CPU.",
    )
    workers: int = Field(description="Workers that hold it.")
    error: str | None = Field(description="Why no worker can load it, if one has said so.")


class Model(PublicModel):
    """One model: what it can do, its limits and defaults, and the schema of its `input`."""

    id: str
    object: Literal["model"] = "model"
    family: str
    task: str
    description: str
    limits: dict[str, Any] = Field(description="Inclusive ranges, by request field.")
    defaults: dict[str, Any]
    samplers: list[str]
    residency: Residency
    input_schema: dict[str, Any] = Field(description="JSON Schema of a request's `input`.")


class ModelList(PublicModel):
    """All models of this server."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(PublicModel):
    """The event loop turns."""

    status: Literal["ok"] = "ok"


class Reason(PublicModel):
    """One thing that keeps the server from making progress."""

    code: Literal["stopping", "store_unavailable", "no_worker", "no_model", "no_progress"]
    message: str


class Readiness(PublicModel):
    """Ready only when a job submitted now would make progress."""

    status: Literal["ready", "unavailable"]
    reasons: list[Reason]
    workers: int
    models: list[str] = Field(description="Models in the memory of some live worker.")
