"""Uploads: pictures and clips that clients send ahead of the jobs that use them.

A file's bytes are a blob of the store, what is known of it a hash in Redis that expires by itself.
The blob comes first and goes last, so a record always has its bytes; blobs without a record are
swept by the keeper. A job gets links of its own to the files it uses (`jobs.job_inputs`), and so
outlives them.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

from config.settings import Settings
from jobs import keys, scripts
from jobs.blobs import FileBlobStore, file_key
from jobs.errors import StoredFileNotFound, store_errors
from jobs.media.info import MediaInfo, MediaLimits
from jobs.rq_record import fields_to_dict, time_from_us
from jobs.time_index import Cursor, older_than
from jobs.uploads import Upload

CHUNK = 256
"""Entries of the listing read at a time."""

FilePage = tuple[list["FileRecord"], str | None]


class FileRecord(BaseModel):
    """One upload. `blob_key` addresses the blob store and is not shown to clients."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    filename: str | None
    purpose: str | None
    bytes: int
    sha256: str
    media: MediaInfo
    blob_key: str
    created_at: datetime
    expires_at: datetime


class _Facts(BaseModel):
    """What of a record is known before Redis has told the time."""

    filename: str | None
    purpose: str | None
    bytes: int
    sha256: str
    media: MediaInfo


def media_limits(settings: Settings) -> MediaLimits:
    """What one file may hold."""
    return MediaLimits(
        max_pixels=settings.max_file_pixels,
        max_frames=settings.max_file_frames,
        max_total_pixels=settings.max_file_total_pixels,
        max_duration_seconds=settings.max_file_duration_seconds,
    )


def new_file_id() -> str:
    """A fresh, unguessable id."""
    return f"file_{uuid.uuid4().hex}"


def content_file_id(sha256: str, owner: str = "") -> str:
    """The id of a file that came inside a request: equal bytes of one owner are one file."""
    if owner:
        sha256 = hashlib.sha256(f"{owner}:{sha256}".encode()).hexdigest()
    return f"file_{sha256[:32]}"


class FileStore:
    """Uploads in Redis and the blob store, for an asyncio server.

    Every method raises `StoreUnavailable` when Redis cannot be reached. `owner` is the id of the
    API key on whose behalf it is called, empty for none; files of others are not found.
    """

    def __init__(self, redis: Redis, blobs: FileBlobStore, settings: Settings) -> None:
        self._redis = redis
        self._blobs = blobs
        self._ttl = settings.file_ttl_seconds

    async def create(
        self,
        upload: Upload,
        media: MediaInfo,
        *,
        file_id: str | None = None,
        filename: str | None = None,
        purpose: str | None = None,
        owner: str = "",
    ) -> FileRecord:
        """Keeps an upload that has been checked. One of the same `file_id` is replaced."""
        file_id = file_id or new_file_id()
        facts = _Facts(
            filename=filename,
            purpose=purpose,
            bytes=upload.size,
            sha256=upload.sha256,
            media=media,
        )
        # A name of its own: a replaced record's blob may still be on its way into a job.
        blob_id = f"{file_id}.{uuid.uuid4().hex[:8]}"
        await asyncio.to_thread(upload.keep, file_key(blob_id))
        with store_errors():
            reply = await scripts.run_async(
                self._redis,
                scripts.FILE_PUT,
                [file_id, facts.model_dump_json(), blob_id, self._ttl, owner],
            )
        record = _record(file_id, reply)
        assert record is not None
        return record

    async def get(self, file_id: str, owner: str = "") -> FileRecord:
        """The upload. Raises `StoredFileNotFound`."""
        found = await self.get_many([file_id], owner)
        if file_id not in found:
            raise StoredFileNotFound(file_id)
        return found[file_id]

    async def get_many(self, file_ids: Iterable[str], owner: str = "") -> dict[str, FileRecord]:
        """The uploads of these ids by id, in one round trip; unknown ones are left out."""
        unique = list(dict.fromkeys(file_ids))
        with store_errors():
            records = await _read(self._redis, unique)
        return {
            record.id: record for record in records if record is not None and record.owner == owner
        }

    async def touch(self, file_id: str) -> FileRecord | None:
        """The upload with its time to live started anew, for a request that counts on it from now
        on; None when there is none.
        """
        with store_errors():
            reply = await scripts.run_async(self._redis, scripts.FILE_TOUCH, [file_id, self._ttl])
        return _record(file_id, reply)

    async def delete(self, file_id: str, owner: str = "") -> None:
        """Removes an upload. Raises `StoredFileNotFound`."""
        record = await self.get(file_id, owner)
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(keys.file(file_id))
                pipeline.zrem(keys.listing(keys.FILE_INDEX, owner), file_id)
                await pipeline.execute()
        await asyncio.to_thread(self._blobs.delete, record.blob_key)

    async def withdraw(self, created: FileRecord) -> None:
        """Removes an upload as `create` made it, unless another request may count on it.

        That is so if it was touched or replaced since, and if it had replaced another's.
        """
        blob_id = created.blob_key.rpartition("/")[2]
        args = [created.id, blob_id, created.owner]
        with store_errors():
            is_ours = await scripts.run_async(self._redis, scripts.FILE_WITHDRAW, args)
        if is_ours:
            await asyncio.to_thread(self._blobs.delete, created.blob_key)

    async def list(
        self, *, limit: int = 20, cursor: str | None = None, owner: str = ""
    ) -> FilePage:
        """A page of uploads, newest first, and the cursor of the next page, None at the end.

        Raises `ValueError` for a malformed cursor.
        """
        place = Cursor.parse(cursor) if cursor is not None else None
        index = keys.listing(keys.FILE_INDEX, owner)
        found: list[FileRecord] = []
        with store_errors():
            while True:
                chunk = await older_than(self._redis, index, place, CHUNK)
                for start in range(0, len(chunk), limit):
                    part = chunk[start : start + limit]
                    records = await _read(self._redis, [entry.id for entry in part])
                    for place, record in zip(part, records, strict=True):
                        if record is not None:
                            found.append(record)
                        if len(found) == limit:
                            return found, str(place)
                if len(chunk) < CHUNK:
                    return found, None


async def _read(redis: Redis, file_ids: Sequence[str]) -> list[FileRecord | None]:
    if not file_ids:
        return []
    pipeline = redis.pipeline(transaction=False)
    for file_id in file_ids:
        pipeline.hgetall(keys.file(file_id))
    replies = await pipeline.execute()
    return [
        _record(file_id, [part for pair in reply.items() for part in pair])
        for file_id, reply in zip(file_ids, replies, strict=True)
    ]


def _record(file_id: str, flat: Sequence[bytes]) -> FileRecord | None:
    fields = fields_to_dict(flat)
    if "data" not in fields:
        return None
    facts = _Facts.model_validate_json(fields["data"])
    return FileRecord(
        id=file_id,
        owner=fields.get("owner", b"").decode(),
        **dict(facts),
        blob_key=file_key(fields["blob"].decode()),
        created_at=time_from_us(int(fields["created_us"])),
        expires_at=time_from_us(int(fields["expires_us"])),
    )
