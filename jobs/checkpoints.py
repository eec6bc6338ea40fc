"""Where checkpoints lie in the blob store, and which of them nobody needs any more.

A job's checkpoints share the folder `jobs/<job id>/checkpoints`; the execution id in their names
keeps those of a fenced-off worker apart. The job's hash points at one of them, moved by the fenced
checkpoint script. A worker removes what it has replaced and, with the job's end, all it knows of;
the keeper sweeps what dead workers have left.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.blobs import ExecutionBlobs, FileBlobStore, job_prefix

CHECKPOINTS = "checkpoints"
"""Stands where an execution id does in the keys of a job's other blobs."""

FIELDS = ("status", "exec", "checkpoint")
"""What the keeper has to know of a job."""

_ACTIVE = (b"queued", b"started")


def checkpoint_key(job_id: str, execution_id: str, step: int) -> str:
    """The key of the checkpoint that one execution takes after `step` denoise steps."""
    return f"{job_prefix(job_id)}/{CHECKPOINTS}/{execution_id}-{step}.safetensors"


def is_checkpoint_of(job_id: str, key: str) -> bool:
    """Whether `key` lies where this job's checkpoints do."""
    return key.startswith(f"{job_prefix(job_id)}/{CHECKPOINTS}/")


def sweep_checkpoints(
    blobs: FileBlobStore,
    found: ExecutionBlobs,
    listed: Sequence[str],
    fields: Sequence[bytes | None],
    *,
    is_old: bool,
) -> int:
    """Removes the checkpoints in `found` that can never be resumed from; returns how many.

    `listed` are the keys in it, `fields` those of `FIELDS`, of a job that Redis knows, and read
    after the listing: then the execution that wrote a checkpoint had been granted before, and if
    it does not hold the job any more, the job will never point at it. What the job points at stays,
    and what its worker has written and may be about to point it at. The folder of a job that has
    ended goes as a whole once it `is_old`: the background of its worker may still write there.
    """
    status, execution, pointer = fields
    if status not in _ACTIVE:
        if not is_old:
            return 0
        blobs.delete_prefix(found.prefix)
        return len(listed)
    own = f"{found.prefix}/{execution.decode()}-" if execution else None
    removed = 0
    for key in listed:
        if key.encode() == pointer or (own is not None and key.startswith(own)):
            continue
        blobs.delete(key)
        removed += 1
    return removed
