"""Bytes on their way into the blob store: counted, hashed, and gone again unless they are kept.

What clients send shares a disk with results and checkpoints, of which nothing may be lost: it is
refused while that disk is short of room.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from jobs.blobs import FILES, FileBlobStore
from jobs.errors import DiskFull, FileTooLarge

CHECK_BYTES = 16 * 2**20
"""Whether there is still room is looked at each time so much has come."""


class Upload:
    """A file being received. As a context manager it leaves nothing behind that was not kept.

    It is not begun, nor gone on with, while less than `min_free_bytes` of the disk are free. Every
    method raises `DiskFull` when there is no room.
    """

    def __init__(self, blobs: FileBlobStore, *, max_bytes: int, min_free_bytes: int = 0) -> None:
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._check_room()
        self._digest = hashlib.sha256()
        with disk_errors():
            self._file, self.path = blobs.new_part(FILES)
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    @property
    def sha256(self) -> str:
        """Of what has come so far, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        """Takes the next bytes. Raises `FileTooLarge`; the file can then only be discarded."""
        self.size += len(data)
        if self.size > self._max_bytes:
            raise FileTooLarge(self._max_bytes)
        self._unchecked_bytes += len(data)
        if self._unchecked_bytes >= CHECK_BYTES:
            self._check_room()
        self._digest.update(data)
        with disk_errors():
            self._file.write(data)

    def finish(self) -> Path:
        """All bytes have come: where they lie."""
        with disk_errors():
            self._file.close()
        return self.path

    def keep(self, key: str) -> None:
        """Makes it the blob `key`, durably."""
        with disk_errors():
            self._blobs.adopt(self.finish(), key)

    def discard(self) -> None:
        """Removes it, unless it was kept."""
        # What could not be written yet is tried again, in vain.
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _check_room(self) -> None:
        self._unchecked_bytes = 0
        with disk_errors():
            free = self._blobs.free_bytes()
        if free < self._min_free_bytes:
            raise DiskFull


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns a disk or a quota that is full into `DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull from error


def received(blobs: FileBlobStore, data: bytes, *, min_free_bytes: int = 0) -> Upload:
    """An upload whose bytes are all here already. Raises `DiskFull`."""
    upload = Upload(blobs, max_bytes=len(data), min_free_bytes=min_free_bytes)
    try:
        upload.write(data)
        upload.finish()
    except BaseException:
        upload.discard()
        raise
    return upload
