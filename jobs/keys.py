"""Names of everything the job layer keeps in Redis.

`rq:` is RQ's and holds what its tools read; `denoised:` is ours. The Lua scripts spell the same
names. The scripts build key names from ids, so one Redis primary is needed, not a cluster.

| key | type | content |
|---|---|---|
| `rq:job:<id>` | hash | RQ's fields and ours, its checkpoint among them; expires after the end |
| `rq:queue:<model>:<priority>` | list | waiting ids, next first |
| `rq:wip:<queue>` | zset | `<id>:<execution id>`, for RQ's tools; score never lapses |
| `rq:finished\\|failed\\|canceled:<queue>` | zset | id -> expiry |
| `rq:results:<id>` | stream | RQ's result entry |
| `denoised:wip` | zset | `<id>:<execution id>` -> end of the lease, Redis time |
| `denoised:ev:<id>` | stream and channel | event log, trimmed near 256 entries |
| `denoised:wake:<model>` | list | doorbell tokens for idle workers |
| `denoised:claim:<claim id>` | list | what a claim granted, for a claim sent twice |
| `denoised:idem:<digest>` | hash | job id and fingerprint of an idempotency key |
| `denoised:jobs` | zset | id -> submission time in us; the listing |
| `denoised:expiry` | zset | id -> when record, results and blobs are to go |
| `denoised:file:<id>` | hash | what is known of an upload; expires with it |
| `denoised:files` | zset | id -> upload time in us; the listing |
| `denoised:finishes` | list | times of the latest finishes |
| `denoised:queues` | set | names of our queues |
"""

from __future__ import annotations

import hashlib

from jobs.types import Priority

INDEX = "denoised:jobs"
EXPIRY = "denoised:expiry"
LEASES = "denoised:wip"
FILE_INDEX = "denoised:files"
QUEUES = "denoised:queues"
WORKERS = "rq:workers"


def job(job_id: str) -> str:
    """The hash of one job."""
    return f"rq:job:{job_id}"


def events(job_id: str) -> str:
    """The event stream of one job, and the channel its live events are published on."""
    return f"denoised:ev:{job_id}"


def file(file_id: str) -> str:
    """The hash of one upload."""
    return f"denoised:file:{file_id}"


def queue_name(model: str, priority: Priority) -> str:
    """The queue as RQ names it: `rq:queue:<this>` is the list."""
    return f"{model}:{priority.value}"


def split_queue_name(name: str) -> tuple[str, Priority]:
    """The model and the class a queue serves."""
    model, _, priority = name.rpartition(":")
    return model, Priority(priority)


def wake(model: str) -> str:
    """The doorbell of one model."""
    return f"denoised:wake:{model}"


def worker(name: str) -> str:
    """The hash of one worker."""
    return f"rq:worker:{name}"


def workers_of(queue: str) -> str:
    """The workers that serve one queue."""
    return f"rq:workers:{queue}"


def idempotency_digest(key: str) -> str:
    """A key of fixed length for whatever a client sent."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def idempotency(digest: str) -> str:
    """The hash of one idempotency key."""
    return f"denoised:idem:{digest}"
