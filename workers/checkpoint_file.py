"""One checkpoint as bytes: a safetensors file of a generation's state that says whose it is.

`pack` makes the file from a state and the facts that identify it; `unpack` gives the state back
after holding digest and facts against what the job expects. Anything that does not fit raises
`CheckpointUnusable`, whose `cause` watchers of the job get to see.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jobs.types import ClaimedJob

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "1"
"""Changes when the meaning of a state does, so that no version goes on from another's."""

MISSING = "checkpoint_missing"
DAMAGED = "checkpoint_damaged"
FOREIGN = "checkpoint_foreign"
"""Sound, but of another job, input, model or version."""
UNREADABLE = "checkpoint_unreadable"
"""Perhaps sound, but the disk or the memory did not let it be read."""


class CheckpointUnusable(Exception):
    """The job has to start at step 0. `cause` is MISSING, DAMAGED or FOREIGN."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


def facts_of(job: ClaimedJob, model: Mapping[str, str]) -> dict[str, str]:
    """What a checkpoint of `job` must say of itself; `model` says which weights, and how they rest.

    See `workers.recipe.Recipes.identity`.
    """
    text = json.dumps(job.input, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"format": FORMAT, "job": job.id, "input": digest, **model}


def pack(state: Mapping[str, Tensor], facts: Mapping[str, str], step: int) -> bytes:
    """The file of a generation's `state` after `step` steps, copied from whatever device."""
    from safetensors.torch import save

    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    data: bytes = save(tensors, metadata={**facts, "step": str(step)})
    return data


def unpack(data: bytes, sha256: str, facts: Mapping[str, str], step: int) -> dict[str, Tensor]:
    """The state in a file of `pack` whose digest, facts and step are these.

    Raises CheckpointUnusable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointUnusable(DAMAGED, "the digest of the file is not the recorded one")
    try:
        state: dict[str, Tensor] = load(data)
        said = _metadata(data)
    except (SafetensorError, ValueError, struct.error) as error:
        raise CheckpointUnusable(DAMAGED, f"not a checkpoint: {error}") from error
    expected = {**facts, "step": str(step)}
    for name, value in expected.items():
        if said.get(name) != value:
            raise CheckpointUnusable(FOREIGN, f"{name} is {said.get(name)!r}, not {value!r}")
    return state


def _metadata(data: bytes) -> dict[str, Any]:
    """What the file says of itself; the library gives it only for files on disk."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    return header.get("__metadata__") or {}
