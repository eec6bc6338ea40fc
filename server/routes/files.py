"""Uploads: pictures and clips sent ahead of the jobs that use them.

A file is written as it comes, decoded once to see that it is what it says, and recorded; whatever
goes wrong on the way, nothing of it is kept.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from jobs.errors import FileTooLarge, StoredFileNotFound
from jobs.media.info import ACCEPTED, MediaError
from jobs.schema.references import FILE_ID
from jobs.uploads import Upload
from server import examples
from server.auth import NEEDS_KEY, OwnerDep
from server.documentation import problems
from server.file_views import file_url, file_view
from server.multipart import Form, read_form, too_large
from server.problems import FieldError, invalid_fields
from server.routes.outputs import OutputFile, matches
from server.schemas import FileList, StoredFile
from server.services import ServicesDep

router = APIRouter(prefix="/v1/files", tags=["files"], dependencies=[NEEDS_KEY])

CONTENT_TYPES = (
    "image/png",
    "image/jpeg",
    "image/webp",
    "image/gif",
    "video/mp4",
    "video/quicktime",
    "video/webm",
    "video/x-matroska",
)
_CONTENT = {name: {"schema": {"type": "string", "format": "binary"}} for name in CONTENT_TYPES}
_PURPOSE = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": f"Accepted are {ACCEPTED}.",
                        },
                        "purpose": {
                            "type": "string",
                            "pattern": f"^{_PURPOSE.pattern}$",
                            "description": "Kept with the file and given back.",
                        },
                    },
                }
            }
        },
    }
}


async def plausible_file_id(
    file_id: Annotated[str, Path(examples=[examples.FILE_ID])],
) -> str:
    """The id from the path; what cannot be an id is not looked up, it is not found."""
    if not FILE_ID.fullmatch(file_id):
        raise StoredFileNotFound(file_id)
    return file_id


FileId = Annotated[str, Depends(plausible_file_id)]


@router.post(
    "",
    summary="Upload a file",
    status_code=201,
    response_model=StoredFile,
    responses={
        201: {
            "description": "Stored.",
            "headers": {
                "Location": {"schema": {"type": "string"}, "description": "The file's URL."}
            },
        },
        **problems(400, 413, 415, 422, 503),
    },
    openapi_extra=_FORM,
)
async def upload_file(
    request: Request, response: Response, services: ServicesDep, owner: OwnerDep
) -> StoredFile:
    """Stores a picture, a mask or a clip and says what is in it.

    The file is decoded, whatever its name says: what is not a picture or a clip, is broken, or is
    larger than the server's limits is refused. It is kept for a time (`expires_at`); a job that
    uses it keeps it for as long as it needs.
    """
    limit, reserve = services.settings.max_file_bytes, services.settings.min_free_disk_bytes
    upload = await asyncio.to_thread(
        Upload, services.blobs, max_bytes=limit, min_free_bytes=reserve
    )
    with upload:
        try:
            form = await read_form(request, file_field="file", write=upload.write, max_bytes=limit)
        except FileTooLarge:
            raise too_large(limit) from None
        purpose = _purpose(form)
        try:
            media = await services.inspector.probe(upload.finish())
        except MediaError as error:
            raise invalid_fields([FieldError(param="file", message=f"file {error}")]) from None
        record = await services.files.create(
            upload, media, filename=form.filename, purpose=purpose, owner=owner
        )
    root_path = request.scope.get("root_path", "")
    response.headers["Location"] = file_url(record.id, root_path)
    return file_view(record, root_path)


def _purpose(form: Form) -> str | None:
    errors = [
        FieldError(param=name, message=f"{name} is not a known field; known are file and purpose")
        for name in form.fields
        if name != "purpose"
    ]
    purpose = form.fields.get("purpose")
    if purpose is not None and not _PURPOSE.fullmatch(purpose):
        errors.append(
            FieldError(
                param="purpose",
                message="purpose must be 1 to 64 letters, digits, dots, hyphens or underscores",
            )
        )
    if not form.has_file:
        errors.append(FieldError(param="file", message="file is required"))
    if errors:
        raise invalid_fields(errors)
    return purpose


class FileQuery(BaseModel):
    """Paging of the list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=20, ge=1, le=100)
    cursor: str | None = Field(
        default=None, max_length=256, description="`next_cursor` of the page before."
    )


@router.get("", summary="List files", response_model=FileList, responses=problems(422, 503))
async def list_files(
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    query: Annotated[FileQuery, Query()],
) -> FileList:
    """Newest first. Files that arrive while paging do not shift the pages that follow."""
    try:
        records, cursor = await services.files.list(
            limit=query.limit, cursor=query.cursor, owner=owner
        )
    except ValueError:
        if query.cursor is None:
            raise
        raise invalid_fields(
            [FieldError(param="cursor", message="cursor must be the next_cursor of a page")]
        ) from None
    root_path = request.scope.get("root_path", "")
    return FileList(
        data=[file_view(record, root_path) for record in records],
        has_more=cursor is not None,
        next_cursor=cursor,
    )


@router.get(
    "/{file_id}", summary="Show a file", response_model=StoredFile, responses=problems(404, 503)
)
async def get_file(
    file_id: FileId, request: Request, services: ServicesDep, owner: OwnerDep
) -> StoredFile:
    """What is known of the file; its bytes are under `links.content`."""
    record = await services.files.get(file_id, owner)
    return file_view(record, request.scope.get("root_path", ""))


@router.delete(
    "/{file_id}",
    summary="Delete a file",
    status_code=204,
    response_class=Response,
    responses=problems(404, 503),
)
async def delete_file(file_id: FileId, services: ServicesDep, owner: OwnerDep) -> Response:
    """Removes the file. Jobs that were accepted with it are not affected."""
    await services.files.delete(file_id, owner)
    return Response(status_code=204)


@router.get(
    "/{file_id}/content",
    summary="Fetch a file",
    response_class=Response,
    responses={
        200: {"description": "The bytes.", "content": _CONTENT},
        206: {"description": "The range asked for."},
        304: {"description": "`If-None-Match` names the present content."},
        **problems(404, 416, 503),
    },
)
@router.head("/{file_id}/content", include_in_schema=False)
async def get_content(
    file_id: FileId, request: Request, services: ServicesDep, owner: OwnerDep
) -> Response:
    """The bytes as they were uploaded, with `ETag` (their SHA-256) and range requests."""
    record = await services.files.get(file_id, owner)
    etag = f'"{record.sha256}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=3600, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    if matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    path = services.blobs.path(record.blob_key)
    try:
        found = await asyncio.to_thread(os.stat, path)
    except FileNotFoundError:
        # Deleted since it was looked up.
        raise StoredFileNotFound(file_id) from None
    return OutputFile(
        path,
        headers=headers,
        media_type=record.media.content_type,
        filename=record.filename or file_id,
        stat_result=found,
        content_disposition_type="inline",
    )
