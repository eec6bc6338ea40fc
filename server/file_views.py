"""From a `FileRecord` to the JSON that clients see; its place in the blob store stays private."""

from __future__ import annotations

from jobs.files import FileRecord
from server.schemas import FileLinks, StoredFile


def file_url(file_id: str, root_path: str = "") -> str:
    """Reference to a file, under the prefix that a proxy serves this application at."""
    return f"{root_path}/v1/files/{file_id}"


def file_view(record: FileRecord, root_path: str = "") -> StoredFile:
    """The public form of a record."""
    url = file_url(record.id, root_path)
    return StoredFile(
        id=record.id,
        bytes=record.bytes,
        sha256=record.sha256,
        filename=record.filename,
        purpose=record.purpose,
        created_at=record.created_at,
        expires_at=record.expires_at,
        links=FileLinks(self=url, content=f"{url}/content"),
        **record.media.model_dump(),
    )
