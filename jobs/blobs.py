"""Where outputs lie: a folder of files, written whole or not at all.

Keys look like `jobs/<job id>/<execution id>/<n>.png`. The execution id keeps a fenced-off worker's
files apart from those of the one that finished; the keeper sweeps the rest.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

KEY = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*")
MAX_KEY_CHARS = 512
JOBS = "jobs"


def output_key(job_id: str, execution_id: str, index: int, extension: str) -> str:
    """The key of one output; `extension` without its dot."""
    return f"{JOBS}/{job_id}/{execution_id}/{index}.{extension}"


def job_prefix(job_id: str) -> str:
    """The prefix of everything a job has stored."""
    return f"{JOBS}/{job_id}"


@dataclass(frozen=True)
class ExecutionBlobs:
    """The folder of one execution. `modified` is in seconds since 1970."""

    job_id: str
    execution_id: str
    prefix: str
    modified: float


class FileBlobStore:
    """Blobs under one folder, which is made when the first is written.

    Every method raises `ValueError` for a key that is empty, too long, or could leave the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, data: bytes) -> None:
        """Stores a blob: after a crash the key holds all of `data`, or what it held before."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _fsync_folder(path.parent)

    def path(self, key: str) -> Path:
        """Where the blob lies, or would."""
        if len(key) > MAX_KEY_CHARS or KEY.fullmatch(key) is None:
            raise ValueError(f"{key[:64]!r} is not a blob key")
        return self._root / key

    def open(self, key: str) -> BinaryIO:
        """The blob for reading; the caller closes it. Raises `FileNotFoundError`."""
        return self.path(key).open("rb")

    def read(self, key: str) -> bytes:
        """The whole blob. Raises `FileNotFoundError`."""
        return self.path(key).read_bytes()

    def delete(self, key: str) -> None:
        """Removes a blob; one that is not there is fine."""
        self.path(key).unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> None:
        """Removes everything below `prefix`, a whole number of key parts."""
        try:
            shutil.rmtree(self.path(prefix))
        except FileNotFoundError:
            return

    def executions(self) -> Iterator[ExecutionBlobs]:
        """Every execution that has stored anything, for the keeper."""
        jobs = self._root / JOBS
        for job in _folders(jobs):
            for execution in _folders(jobs / job):
                folder = jobs / job / execution
                try:
                    modified = folder.stat().st_mtime
                except FileNotFoundError:
                    continue
                yield ExecutionBlobs(job, execution, f"{JOBS}/{job}/{execution}", modified)


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _fsync_folder(path: Path) -> None:
    """Makes a rename survive power loss, where the system lets a folder be opened."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
