"""Reading a form with one file in it, as it comes in from the socket.

The framework would first spool the whole of it to the system's temporary folder, however large it
is. Here each piece goes straight to where the file is to lie, and what is too large is refused
while it comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from server.problems import FieldError, Problem, ProblemCode, invalid_fields

MAX_FIELDS = 8
MAX_FIELD_BYTES = 1024
MAX_FILENAME_CHARS = 255
PIECE_BYTES = 1 << 20
"""How much is gathered before it is parsed and written, in a thread."""

OVERHEAD_BYTES = 64 << 10
"""What a form may have beyond its file: boundaries, headers and short fields."""


@dataclass
class Form:
    """What came beside the file: its name, if it had one, and the text fields."""

    filename: str | None = None
    has_file: bool = False
    fields: dict[str, str] = field(default_factory=dict)


async def read_form(
    request: Request, *, file_field: str, write: Callable[[bytes], None], max_bytes: int
) -> Form:
    """Reads `multipart/form-data`, handing the bytes of `file_field` to `write` as they come.

    Raises `Problem`: 415 for another content type, 413 when the body is declared larger than
    `max_bytes` of file can make it, 400 when it is not a whole form, 422 for more than one file or
    fields too many or too long. What `write` raises comes through.
    """
    boundary = _boundary(request.headers.get("content-type", ""))
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes + OVERHEAD_BYTES:
        raise too_large(max_bytes)
    parts = _Parts(file_field, write)
    parser = MultipartParser(boundary, parts.callbacks())
    gathered = bytearray()
    total = 0
    try:
        async for chunk in request.stream():
            total += len(chunk)
            if total > max_bytes + OVERHEAD_BYTES:
                raise too_large(max_bytes)
            gathered += chunk
            if len(gathered) >= PIECE_BYTES:
                await asyncio.to_thread(parser.write, bytes(gathered))
                gathered.clear()
        await asyncio.to_thread(parser.write, bytes(gathered))
        parser.finalize()
    except ClientDisconnect:
        # Nobody is left to read this; it only ends the request without a trace.
        raise _malformed("The connection ended within the body.") from None
    except MultipartParseError:
        raise _malformed("The body is not a form in multipart/form-data.") from None
    if not parts.ended:
        raise _malformed("The form ends before its last boundary.")
    return parts.form


def too_large(max_bytes: int) -> Problem:
    """The file, or the form around it, is larger than allowed."""
    # The rest of the body is not read, so the connection cannot carry another request.
    return Problem(
        413,
        ProblemCode.BODY_TOO_LARGE,
        f"file may have at most {max_bytes} bytes.",
        param="file",
        headers={"Connection": "close"},
    )


def _boundary(content_type: str) -> bytes:
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/form-data":
        raise Problem(
            415,
            ProblemCode.UNSUPPORTED_MEDIA_TYPE,
            "Send the file as a form: Content-Type: multipart/form-data (curl -F file=@NAME).",
        )
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise _malformed("The form's Content-Type has no boundary of 1 to 70 characters.")
    return boundary


def _malformed(detail: str) -> Problem:
    return Problem(400, ProblemCode.MALFORMED_BODY, detail)


def _refused(param: str, message: str) -> Problem:
    return invalid_fields([FieldError(param=param, message=message)])


class _Parts:
    """Takes the parser's events and puts each part where it belongs."""

    def __init__(self, file_field: str, write: Callable[[bytes], None]) -> None:
        self.form = Form()
        self.ended = False
        self._file_field = file_field
        self._write = write
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._name = ""
        self._text = bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._on_part_begin,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_end": self._on_end,
        }

    @property
    def _in_file(self) -> bool:
        return self._name == self._file_field

    def _on_part_begin(self) -> None:
        self._disposition, self._name = b"", ""
        self._text.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")[:64]
        if not self._name:
            raise _malformed("A part of the form has no name.")
        if not self._in_file:
            return
        if self.form.has_file:
            raise _refused(self._file_field, f"{self._file_field} may be given once")
        self.form.has_file = True
        self.form.filename = _plain_name(options.get(b"filename", b""))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise _refused(self._name, f"{self._name} may have at most {MAX_FIELD_BYTES} bytes")

    def _on_part_end(self) -> None:
        if self._in_file:
            return
        if self._name in self.form.fields or len(self.form.fields) >= MAX_FIELDS:
            raise _refused(self._name, f"{self._name} is given twice, or in a crowd of fields")
        try:
            self.form.fields[self._name] = self._text.decode("utf-8")
        except UnicodeDecodeError:
            raise _refused(self._name, f"{self._name} is not valid UTF-8") from None

    def _on_end(self) -> None:
        self.ended = True


def _plain_name(filename: bytes) -> str | None:
    """A client's file name without its folders and without what cannot be shown."""
    text = filename.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    shown = "".join(character for character in text if character.isprintable()).strip()
    return shown[:MAX_FILENAME_CHARS] or None
