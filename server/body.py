"""Reading a JSON body without trusting it.

Bytes come in from the socket and leave as plain Python values, bounded in size and depth and valid
Unicode throughout. Anything else is a `Problem`. Numbers of any size and NaN pass: only the schema
of the field that they stand in can say what it takes instead.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from fastapi import Request
from starlette.requests import ClientDisconnect

from server.problems import FieldError, Problem, ProblemCode, invalid_fields

MAX_DEPTH = 16
MAX_DIGITS = 400
"""Longer integers are read as infinite, which no field takes: converting them costs time."""

MAX_NAME_CHARS = 64


async def read_json_object(request: Request, *, max_bytes: int) -> dict[str, Any]:
    """The request's JSON object.

    Raises `Problem`: 415 for another content type or encoding, 413 above `max_bytes` (before the
    rest is read), 400 for what is not a JSON object, 422 for text that is not Unicode or holds NUL.
    """
    _check_content_type(request.headers.get("content-type"))
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(
            415,
            ProblemCode.UNSUPPORTED_MEDIA_TYPE,
            "Compressed bodies are not accepted: send the JSON without Content-Encoding.",
        )
    value = _parse(await _read(request, max_bytes))
    if not isinstance(value, dict):
        raise _malformed("The body must be a JSON object.")
    _check_values(value)
    return value


def _check_content_type(header: str | None) -> None:
    media_type, _, parameters = (header or "").partition(";")
    media_type = media_type.strip().lower()
    is_json = media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    if not is_json:
        detail = "Send JSON with the header Content-Type: application/json."
        if media_type == "application/x-www-form-urlencoded":
            detail += " (curl -d sends a form unless told otherwise: use curl --json.)"
        raise Problem(415, ProblemCode.UNSUPPORTED_MEDIA_TYPE, detail)
    name, _, charset = parameters.partition("=")
    if name.strip().lower() == "charset" and charset.strip(' "').lower() not in ("utf-8", "utf8"):
        raise Problem(
            415, ProblemCode.UNSUPPORTED_MEDIA_TYPE, "JSON bodies must be encoded in UTF-8."
        )


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
    except ClientDisconnect:
        # Nobody is left to read this; it only ends the request without a trace.
        raise _malformed("The connection ended within the body.") from None
    return bytes(body)


def _too_large(max_bytes: int) -> Problem:
    # The rest of the body is not read, so the connection cannot carry another request.
    return Problem(
        413,
        ProblemCode.BODY_TOO_LARGE,
        f"The body may have at most {max_bytes} bytes.",
        headers={"Connection": "close"},
    )


def _malformed(detail: str) -> Problem:
    return Problem(400, ProblemCode.MALFORMED_BODY, detail)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


def _parse(body: bytes) -> object:
    if not body:
        raise _malformed("The body is empty; a JSON object is needed.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"The body is not valid UTF-8 (at byte {error.start}).") from None
    try:
        return json.loads(text, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise _malformed(
            f"The body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None
    except RecursionError:
        raise _malformed(f"JSON may be nested at most {MAX_DEPTH} levels deep.") from None


def _check_values(root: dict[str, Any]) -> None:
    """Refuses what JSON can say but no field may hold, naming the place."""
    pending: list[tuple[str, int, object]] = [("", 0, root)]
    while pending:
        path, depth, value = pending.pop()
        if isinstance(value, str):
            _check_text(path, value)
        elif isinstance(value, (dict, list)):
            if depth == MAX_DEPTH:
                raise _malformed(f"JSON may be nested at most {MAX_DEPTH} levels deep.")
            if isinstance(value, dict):
                for name, member in value.items():
                    pending.append((_member_path(path, name), depth + 1, member))
            else:
                for index, member in enumerate(value):
                    pending.append((f"{path}[{index}]", depth + 1, member))


def _member_path(path: str, name: str) -> str:
    _check_text(path, name)
    shown = name if len(name) <= MAX_NAME_CHARS else name[:MAX_NAME_CHARS] + "…"
    return f"{path}.{shown}" if path else shown


def _check_text(path: str, text: str) -> None:
    if "\0" in text:
        _refuse(path, "contains a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        _refuse(path, "contains a lone surrogate, which is not a character")


def _refuse(path: str, message: str) -> NoReturn:
    name = path or "A field's name"
    raise invalid_fields([FieldError(param=path or None, message=f"{name} {message}")])
