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
| `denoised:loading:<model>` | hash | bytes, and when it is to be ready, while it is loaded |
| `denoised:claim:<claim id>` | list | what a claim granted, for a claim sent twice |
| `denoised:idem:<digest>` | hash | job id and fingerprint of an idempotency key |
| `denoised:jobs` | zset | id -> submission time in us; the listing |
| `denoised:expiry` | zset | id -> when record, results and blobs are to go |
| `denoised:file:<id>` | hash | what is known of an upload; expires with it |
| `denoised:files` | zset | id -> upload time in us; the listing |
| `denoised:finishes` | list | times of the latest finishes |
| `denoised:queues` | set | names of our queues |
| `denoised:jobs:<owner>`, `denoised:files:<owner>` | zset | the listings of one API key |
| `rq:queue:<queue>@<key id>` | list | waiting ids of one API key, its lane |
| `denoised:lanes` | set | names of the lanes that wait, `<queue>@<key id>` |
| `denoised:backlog`, `denoised:backlog:jobs` | hash | lane -> estimated cost, of how many jobs |
| `denoised:vtime` | number | virtual time of the claims, GPU-seconds: see `scripts/claim.lua` |
| `denoised:fair`, `denoised:served` | hash | key id -> its tag; time of its latest claim in us |
| `denoised:held:<key id>` | set | ids of a key's running jobs |
| `denoised:usage:<key id>:<day>` | hash | jobs and GPU-seconds of a key since midnight UTC |
| `denoised:reap_from` | number | from when on leases are reaped, Redis time; short-lived |
| `denoised:deadlines` | zset | id -> deadline, Redis time |
| `denoised:costs:<model>`, `denoised:costs:mean` | hash | moving averages by shape, by model |
| `denoised:apikey:<id>` | hash | one API key: digest of its secret, name, quotas |
| `denoised:apikeys` | zset | id -> creation time in us |
| `denoised:apikeys:made` | number | keys ever made; never goes down |

What belongs to a job or a file goes with it. Kept for ever, but only so much for each model, queue
and API key: `rq:queues`, `denoised:queues`, `:finishes` (64 entries), `:vtime`, `:fair`, `:served`,
`:backlog`, `:backlog:jobs`, `:costs:*` (256 shapes a model) and `:apikey*`. `bench.day` checks it.
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
API_KEYS = "denoised:apikeys"
API_KEYS_MADE = "denoised:apikeys:made"
FAIR = "denoised:fair"
SERVED = "denoised:served"


def job(job_id: str) -> str:
    """The hash of one job."""
    return f"rq:job:{job_id}"


def events(job_id: str) -> str:
    """The event stream of one job, and the channel its live events are published on."""
    return f"denoised:ev:{job_id}"


def listing(index: str, owner: str) -> str:
    """The listing of one owner: of a key its own, else the common one."""
    return f"{index}:{owner}" if owner else index


def api_key(key_id: str) -> str:
    """The hash of one API key."""
    return f"denoised:apikey:{key_id}"


def held(key_id: str) -> str:
    """The running jobs of one API key."""
    return f"denoised:held:{key_id}"


def costs(model: str) -> str:
    """What jobs of a model have taken, by shape."""
    return f"denoised:costs:{model}"


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


def loading(model: str) -> str:
    """What is known of the load that jobs for a model wait for."""
    return f"denoised:loading:{model}"


def workers_of(queue: str) -> str:
    """The workers that serve one queue."""
    return f"rq:workers:{queue}"


def idempotency_digest(key: str, owner: str) -> str:
    """A key of fixed length for whatever a client sent; each owner has its own."""
    return hashlib.sha256(f"{owner}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()


def idempotency(digest: str) -> str:
    """The hash of one idempotency key."""
    return f"denoised:idem:{digest}"
