"""A forward reader over the head of an untrusted file: nothing is read, kept or skipped unchecked.

Each length that the file states is held against what is left of the file before a byte of it is
read. Only a small window of the file is in memory, so that large arrays are passed over without
cost, and the header as a whole may not exceed a limit that no sound file comes near.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, BinaryIO

from models.errors import CheckpointError

MAX_HEADER_BYTES = 32 << 20
"""A tokenizer of 256 thousand tokens takes 6 MB, the records of a 14B model 0.1 MB."""
_WINDOW_BYTES = 256 << 10
_LENGTH = Struct("<Q")


class BoundedReader:
    """Reads `handle`, at its beginning, of a file with `file_size` bytes that is called `where`.

    Every method raises CheckpointError that begins with `where` when the file is too short for
    what is asked; `what` names it in the message.
    """

    def __init__(self, handle: BinaryIO, file_size: int, where: str) -> None:
        self.where = where
        self.file_size = file_size
        self._handle = handle
        self._limit = min(file_size, MAX_HEADER_BYTES)
        self._window = b""
        self._window_offset = 0
        self._at = 0

    @property
    def offset(self) -> int:
        """Bytes from the beginning of the file to what comes next."""
        return self._window_offset + self._at

    def error(self, message: str) -> CheckpointError:
        """The error to raise about this file."""
        return CheckpointError(f"{self.where}: {message}")

    def require(self, nbytes: int, what: str) -> None:
        """Refuse unless `nbytes` more bytes can follow."""
        if nbytes <= self._limit - self.offset:
            return
        if self.file_size > self._limit and nbytes <= self.file_size - self.offset:
            raise self.error(
                f"{what} reaches past the {MAX_HEADER_BYTES} bytes allowed for a GGUF header"
            )
        raise self.error(
            f"{what} would end at byte {self.offset + nbytes}, "
            f"but the file ends after {self.file_size} bytes"
        )

    def peek(self, most: int) -> bytes:
        """The next `most` bytes, or what is left, which stay to be read."""
        nbytes = min(most, self._limit - self.offset)
        self._fill(nbytes, "the beginning")
        return self._window[self._at : self._at + nbytes]

    def take(self, nbytes: int, what: str) -> bytes:
        """The next `nbytes` bytes."""
        self._fill(nbytes, what)
        start = self._at
        self._at = start + nbytes
        return self._window[start : self._at]

    def unpack(self, layout: Struct, what: str) -> tuple[Any, ...]:
        """The next values, in the given layout."""
        self._fill(layout.size, what)
        values = layout.unpack_from(self._window, self._at)
        self._at += layout.size
        return values

    def skip(self, nbytes: int, what: str) -> None:
        """Pass over the next `nbytes` bytes without reading them."""
        self.require(nbytes, what)
        self._at += nbytes

    def skip_strings(self, count: int, what: str) -> None:
        """Pass over `count` strings, each a length of eight bytes and as many bytes."""
        self.require(count * _LENGTH.size, what)
        # A tokenizer has hundreds of thousands: this loop works on local names alone.
        read_length, size = _LENGTH.unpack_from, _LENGTH.size
        window, at, last = self._window, self._at, len(self._window) - _LENGTH.size
        for _ in range(count):
            if at > last:
                self._at = at
                self._fill(size, what)
                window, at, last = self._window, self._at, len(self._window) - size
            at += size + read_length(window, at)[0]
        self._at = at
        self.require(0, what)

    def _fill(self, nbytes: int, what: str) -> None:
        if self._at + nbytes <= len(self._window):
            return
        self.require(nbytes, what)
        offset = self.offset
        rest = self._window[self._at :]
        # A window that was skipped past leaves a gap to seek over.
        self._handle.seek(offset + len(rest))
        parts = [rest] if rest else []
        missing = min(max(nbytes, _WINDOW_BYTES), self._limit - offset) - len(rest)
        while missing > 0 and (part := self._handle.read(missing)):
            parts.append(part)
            missing -= len(part)
        self._window, self._window_offset, self._at = b"".join(parts), offset, 0
        if len(self._window) < nbytes:
            raise self.error(f"{what}: the file became shorter while it was read")
