"""Bytes on their way into the blob store: counted, hashed, and gone again unless they are kept."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Self

from jobs.blobs import FILES, FileBlobStore
from jobs.errors import FileTooLarge


class Upload:
    """A file being received. As a context manager it leaves nothing behind that was not kept."""

    def __init__(self, blobs: FileBlobStore, *, max_bytes: int) -> None:
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256()
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
        self._digest.update(data)
        self._file.write(data)

    def finish(self) -> Path:
        """All bytes have come: where they lie."""
        self._file.close()
        return self.path

    def keep(self, key: str) -> None:
        """Makes it the blob `key`, durably."""
        self._blobs.adopt(self.finish(), key)

    def discard(self) -> None:
        """Removes it, unless it was kept."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def received(blobs: FileBlobStore, data: bytes) -> Upload:
    """An upload whose bytes are all here already."""
    upload = Upload(blobs, max_bytes=len(data))
    try:
        upload.write(data)
        upload.finish()
    except BaseException:
        upload.discard()
        raise
    return upload
