"""The bytes of results: conditional and range requests over the blob store's files."""

from __future__ import annotations

import asyncio
import os
import re
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from jobs.blobs import variant_key
from jobs.types import JobRecord, Output, Status
from server.auth import NEEDS_KEY, OwnerDep
from server.documentation import problems
from server.problems import Problem, ProblemCode, render
from server.routes.jobs import JobId
from server.services import ServicesDep

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[NEEDS_KEY])

_SUFFIXES = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "video/mp4": "mp4",
    "video/webm": "webm",
}
_BYTE_RANGE = re.compile(r"(?:\d+-\d*|-\d+)")
_CONTENT = {
    media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in _SUFFIXES
}


class OutputFile(FileResponse):
    """A file response whose refused ranges are problems and whose malformed ranges are ignored.

    RFC 9110 §14.2: a range in another unit or without sense means the whole file.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope = {**scope, "headers": [h for h in scope["headers"] if _is_usable(h)]}
        refused = False

        async def problem_send(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 416:
                refused = True
            if not refused:
                await send(message)

        await super().__call__(scope, receive, problem_send)
        if refused:
            size = self.headers["content-length"]
            problem = Problem(
                416,
                ProblemCode.RANGE_NOT_SATISFIABLE,
                f"The file has {size} bytes; the range lies outside.",
                headers={"Content-Range": f"bytes */{size}"},
            )
            response = render(problem, path=scope["path"], request_id=scope["state"]["request_id"])
            await response(scope, receive, send)


def _is_usable(header: tuple[bytes, bytes]) -> bool:
    name, value = header
    return name != b"range" or is_byte_range(value.decode("latin-1"))


def is_byte_range(value: str) -> bool:
    """Whether a Range header has the form and order that RFC 9110 §14.1.2 gives byte ranges."""
    unit, _, ranges = value.partition("=")
    if unit.strip().lower() != "bytes":
        return False
    for part in ranges.split(","):
        if not _BYTE_RANGE.fullmatch(part.strip()) or len(part) > 40:
            return False
        first, _, last = part.strip().partition("-")
        if first and last and int(last) < int(first):
            return False
    return True


def matches(if_none_match: str, etag: str) -> bool:
    """Weak comparison of an If-None-Match list with our strong tag (RFC 9110 §13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


def _output_of(record: JobRecord, index: int) -> Output:
    if not record.status.is_terminal:
        raise Problem(
            409,
            ProblemCode.JOB_NOT_FINISHED,
            f"The job is {record.status}; its outputs are there when it has succeeded.",
            headers={"Retry-After": "1"},
        )
    if record.status is not Status.SUCCEEDED:
        raise Problem(
            404, ProblemCode.NOT_FOUND, f"The job ended as {record.status} and has no outputs."
        )
    if index >= len(record.outputs):
        last = len(record.outputs) - 1
        raise Problem(404, ProblemCode.NOT_FOUND, f"The job's outputs are numbered 0..{last}.")
    return record.outputs[index]


def _no_variant(variant: str, output: Output) -> Problem:
    there = ", ".join(output.variants) or "none"
    return Problem(
        404,
        ProblemCode.NOT_FOUND,
        f"The output has no variant {variant!r}; its variants: {there}.",
        param="variant",
    )


@router.get(
    "/{job_id}/outputs/{index}",
    summary="Fetch a result",
    response_class=Response,
    responses={
        200: {"description": "The bytes.", "content": _CONTENT},
        206: {"description": "The range asked for."},
        304: {"description": "`If-None-Match` names the present content."},
        **problems(404, 409, 410, 416, 422, 503),
    },
)
@router.head("/{job_id}/outputs/{index}", include_in_schema=False)
async def get_output(
    job_id: JobId,
    index: Annotated[int, Path(ge=0, le=1000, description="Number of the output, from 0.")],
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    variant: Annotated[
        Literal["thumbnail", "frames"] | None,
        Query(
            description="A smaller form, as JPEG: `thumbnail` (longer side 256 pixels at most) or, "
            "of a clip, `frames` (up to nine side by side). The output lists what it has."
        ),
    ] = None,
) -> Response:
    """The file, with `ETag` (its SHA-256), range requests and a telling file name."""
    output = _output_of(await services.store.get(job_id, owner), index)
    key, content_type, etag, stem = output.key, output.content_type, output.sha256, str(index)
    if variant is not None:
        if variant not in output.variants:
            raise _no_variant(variant, output)
        # A variant never changes while its output does not.
        key, content_type, etag = variant_key(key, variant), "image/jpeg", f"{etag}-{variant}"
        stem = f"{index}-{variant}"
    etag = f'"{etag}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=3600, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    if matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    path = services.blobs.path(key)
    try:
        found = await asyncio.to_thread(os.stat, path)
    except FileNotFoundError:
        raise Problem(
            410, ProblemCode.RESULT_EXPIRED, "The result has expired and its file is gone."
        ) from None
    suffix = _SUFFIXES.get(content_type, "bin")
    return OutputFile(
        path,
        headers=headers,
        media_type=content_type,
        filename=f"{job_id}-{stem}.{suffix}",
        stat_result=found,
        content_disposition_type="inline",
    )
