"""The recipe of a picture or clip: all that is needed to make it again, as JSON inside the file.

`Recipes` knows what does not change while a model is resident; `of` adds one job's input for one of
its outputs. Submitting `recipe["input"]` to the same model yields that output; with
`deterministic: true`, on the same device and versions, the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jobs.types import ClaimedJob
from workers.device import Device
from workers.json_file import read_json, write_json

_IDENTITY = ("model", "checkpoint", "dtype", "residency")
_EXACT_IDENTITY = (*_IDENTITY, "denoised", "torch", "device")

_WEIGHTS = ("*.safetensors", "*.gguf")


class Recipes:
    """Recipes for one resident model: id, digest of its checkpoint, device and versions.

    `residency` is how its weights rest in memory, which may move the last bits of a result.
    """

    def __init__(self, model: str, checkpoint: str, device: Device, residency: str) -> None:
        import torch

        self._head = {"denoised": _version("denoised"), "model": model, "checkpoint": checkpoint}
        self._tail = {
            "device": device.model_name,
            "dtype": device.dtype,
            "residency": residency,
            "torch": str(torch.__version__),
        }

    def of(self, job: ClaimedJob, index: int) -> dict[str, Any]:
        """The recipe of output `index` of `job`: its own seed, one image."""
        own = {**job.input, "seed": job.input["seed"] + index}
        if "num_images" in own:
            own["num_images"] = 1
        return {**self._head, "input": own, "deterministic": job.deterministic, **self._tail}

    def identity(self, job: ClaimedJob) -> dict[str, str]:
        """What has to be equal where `job` is gone on with from a checkpoint.

        The same weights, resting alike; of a deterministic job, whose recipe is to yield the same
        bytes, device and versions too.
        """
        facts = {**self._head, **self._tail}
        return {name: facts[name] for name in (_EXACT_IDENTITY if job.deterministic else _IDENTITY)}


def checkpoint_digest(folder: Path, parts: Sequence[Path], cache: Path) -> str:
    """`sha256:` and the digest that identifies the weights in `parts`, files or folders.

    It is the SHA-256 of the lines `sha256sum` prints for the weight files (safetensors, gguf, found
    recursively) with paths relative to `folder`, sorted by path. The digest of each file is kept in
    the JSON file `cache` under its path, size and modification time, since hashing takes about a
    second per gigabyte. Raises OSError when a file cannot be read.
    """
    cached = read_json(cache)
    known = cached if isinstance(cached, dict) else {}
    lines, used = [], {}
    for path in sorted({path for part in parts for path in _weight_files(part)}):
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        digest = used[key] = known.get(key) or _sha256(path)
        lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    if not used.items() <= known.items():
        write_json(cache, {**known, **used})
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def _weight_files(part: Path) -> Iterable[Path]:
    if part.is_file():
        return (part,)
    return (path for pattern in _WEIGHTS for path in part.rglob(pattern))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
