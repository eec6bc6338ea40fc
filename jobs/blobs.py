"""Where outputs lie: a folder of files, written whole or not at all.

Keys look like `jobs/<job id>/<execution id>/<n>.png`. The execution id keeps a fenced-off worker's
files apart from those of the one that finished; the keeper sweeps the rest. A job's input files lie
in `jobs/<job id>/inputs`, its checkpoints in `jobs/<job id>/checkpoints` (`jobs.checkpoints`),
uploads in `files/<blob id>`.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

KEY = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*")
MAX_KEY_CHARS = 512
JOBS = "jobs"
INPUTS = "inputs"
FILES = "files"
PART_SUFFIX = ".part"
"""Of what is being written; such a name starts with a dot, which no key does."""


def output_key(job_id: str, execution_id: str, index: int, extension: str) -> str:
    """The key of one output; `extension` without its dot."""
    return f"{execution_prefix(job_id, execution_id)}/{index}.{extension}"


def input_key(job_id: str, field: str, index: int | None = None) -> str:
    """The key of a file that a job was submitted with; `index` counts those of a list field."""
    name = field if index is None else f"{field}-{index}"
    return f"{JOBS}/{job_id}/{INPUTS}/{name}"


def file_key(blob_id: str) -> str:
    """The key of an upload; `blob_id` is `<file id>.<anything>`."""
    return f"{FILES}/{blob_id}"


def variant_key(key: str, name: str) -> str:
    """The key of a smaller form of the output at `key`, a JPEG beside it."""
    return f"{key.rpartition('.')[0]}.{name}.jpg"


def job_prefix(job_id: str) -> str:
    """The prefix of everything a job has stored."""
    return f"{JOBS}/{job_id}"


def execution_prefix(job_id: str, execution_id: str) -> str:
    """The prefix of the outputs that one execution has stored."""
    return f"{job_prefix(job_id)}/{execution_id}"


@dataclass(frozen=True)
class UploadBlob:
    """One upload, or a part of one. `modified` is in seconds since 1970."""

    name: str
    path: Path
    modified: float

    @property
    def is_partial(self) -> bool:
        return self.name.startswith(".")

    @property
    def file_id(self) -> str:
        """The id of the file that it belongs to, or belonged to."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class ExecutionBlobs:
    """The folder of one execution, or of a job's inputs or checkpoints.

    `modified`: seconds since 1970.
    """

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
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=PART_SUFFIX)
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

    def free_bytes(self) -> int:
        """Room on its disk for what an ordinary user writes."""
        self._root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self._root).free

    def new_part(self, folder: str) -> tuple[BinaryIO, Path]:
        """A file to write a blob to piece by piece, in the folder where `adopt` is to put it."""
        path = self.path(folder)
        path.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path, prefix=".", suffix=PART_SUFFIX)
        return os.fdopen(handle, "wb"), Path(name)

    def adopt(self, part: Path, key: str) -> None:
        """Makes a file of `new_part`, written and closed, the blob `key`."""
        path = self.path(key)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        _fsync_folder(path.parent)

    def link(self, source: str, target: str) -> None:
        """Makes the blob `source` the blob `target` as well; each lives on without the other.

        Raises `FileNotFoundError` when there is no `source`.
        """
        origin, path = self.path(source), self.path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(origin, path)
        except FileNotFoundError:
            raise
        except OSError:
            # Not every file system links, nor without end.
            self.put(target, origin.read_bytes())
            return
        _fsync_folder(path.parent)

    def uploads(self) -> Iterator[UploadBlob]:
        """Every upload and part of one, for the keeper."""
        try:
            with os.scandir(self._root / FILES) as entries:
                found = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        except FileNotFoundError:
            return
        for name in found:
            if not (name.startswith(".") or _is_key(name)):
                continue
            path = self._root / FILES / name
            try:
                yield UploadBlob(name, path, path.stat().st_mtime)
            except FileNotFoundError:
                continue

    def now(self) -> float:
        """The time on the clock that stamps the blobs, which need not be this process's own.

        -inf while there is no folder. Touches only that: a full disk takes no new file.
        """
        try:
            os.utime(self._root)
            return self._root.stat().st_mtime
        except FileNotFoundError:
            return -math.inf

    def path(self, key: str) -> Path:
        """Where the blob lies, or would."""
        if not _is_key(key):
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

    def keys_in(self, prefix: str) -> list[str]:
        """The keys of the blobs directly below `prefix`, in no order."""
        folder = self.path(prefix)
        try:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        return [f"{prefix}/{name}" for name in names if not name.startswith(".")]

    def executions(self) -> Iterator[ExecutionBlobs]:
        """Every execution that has stored anything, for the keeper.

        What has no key's name is not ours (a file server's `.snapshot` or `@eaDir`); a job's folder
        that cannot be read is logged and left out.
        """
        for job in _folders(self._root / JOBS):
            if not _is_key(job):
                continue
            try:
                found = self._executions_of(job)
            except OSError as error:
                log.error("cannot read %s: %s", job_prefix(job), error)
                continue
            yield from found

    def _executions_of(self, job: str) -> list[ExecutionBlobs]:
        found = []
        for execution in _folders(self._root / JOBS / job):
            prefix = execution_prefix(job, execution)
            if not _is_key(prefix):
                continue
            try:
                modified = self.path(prefix).stat().st_mtime
            except FileNotFoundError:
                continue
            found.append(ExecutionBlobs(job, execution, prefix, modified))
        return found


def _is_key(name: str) -> bool:
    return len(name) <= MAX_KEY_CHARS and KEY.fullmatch(name) is not None


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
