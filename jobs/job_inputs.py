"""From an input that names files to a job that owns them.

Data URLs become files, ids are looked up, the input is resolved with what is known of them, and
each file is linked into the job's own folder, where the worker finds it: an upload may then expire
or be deleted without harm to the job. What is refused on the way leaves nothing behind, but for a
file that another request with the same bytes may count on: it stays for its time to live.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from config.model_spec import ModelSpec
from config.settings import Settings
from jobs.blobs import FileBlobStore, input_key, job_prefix
from jobs.data_urls import decode_data_url
from jobs.errors import DiskFull, InvalidInput
from jobs.files import FileRecord, FileStore, content_file_id
from jobs.media.info import MediaError, MediaInfo
from jobs.media.inspector import MediaInspector
from jobs.schema import FileReference, file_references, resolve_input
from jobs.schema.references import with_ids
from jobs.uploads import Upload, disk_errors, received


@dataclass(frozen=True)
class PreparedInput:
    """A complete input, and what was put in place for the job that is to have it.

    `created` are the files that came as data URLs and were not known before. Others that come with
    the same bytes meanwhile use them, too.
    """

    job_id: str
    resolved: dict[str, Any]
    has_files: bool = False
    created: tuple[FileRecord, ...] = ()


@dataclass
class _Carried:
    """The files that came inside one request: ids by URL, and what is still to be kept by id."""

    ids: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, tuple[Upload, MediaInfo]] = field(default_factory=dict)


class JobInputs:
    """Makes inputs complete and jobs owners of their files, for an asyncio server."""

    def __init__(
        self,
        files: FileStore,
        blobs: FileBlobStore,
        inspector: MediaInspector,
        settings: Settings,
    ) -> None:
        self._files = files
        self._blobs = blobs
        self._inspector = inspector
        self._settings = settings

    async def prepare(
        self, job_id: str, spec: ModelSpec, raw: Mapping[str, Any], owner: str = ""
    ) -> PreparedInput:
        """The complete input of a job to be submitted under `job_id`, its files in place.

        Only files of `owner` are found.

        Raises `InvalidInput` naming the field, `DiskFull` and `StoreUnavailable`. If the job is not
        accepted after all, call `withdraw` or `release`.
        """
        references = file_references(spec, raw)
        if not references:
            return PreparedInput(job_id, resolve_input(spec, raw))
        with ExitStack() as stack:
            carried = await self._carried(references, stack, owner)
            raw = with_ids(raw, carried.ids)
            references = file_references(spec, raw)
            named = [reference.value for reference in references]
            records = await self._files.get_many(named, owner)
            known = {file_id: record.media for file_id, record in records.items()}
            known |= {file_id: media for file_id, (_, media) in carried.uploads.items()}
            resolved = resolve_input(spec, raw, known)
            created: dict[str, FileRecord] = {}
            try:
                for file_id, (upload, media) in carried.uploads.items():
                    created[file_id] = await self._files.create(
                        upload, media, file_id=file_id, owner=owner
                    )
                await asyncio.to_thread(self._link, job_id, references, records | created)
            except (InvalidInput, DiskFull):
                await self.withdraw(PreparedInput(job_id, resolved, True, (*created.values(),)))
                raise
        return PreparedInput(job_id, resolved, True, (*created.values(),))

    async def release(self, prepared: PreparedInput) -> None:
        """Removes the job's links: another job has taken its place."""
        if prepared.has_files:
            prefix = job_prefix(prepared.job_id)
            await asyncio.to_thread(self._blobs.delete_prefix, prefix)

    async def withdraw(self, prepared: PreparedInput) -> None:
        """Removes all that was put in place for the job alone: it was refused."""
        await self.release(prepared)
        for record in prepared.created:
            await self._files.withdraw(record)

    async def _carried(
        self, references: Sequence[FileReference], stack: ExitStack, owner: str
    ) -> _Carried:
        """Decodes and checks the data URLs. Raises `InvalidInput`."""
        carried = _Carried()
        room = self._settings.max_data_url_bytes
        for reference in references:
            url, param = reference.value, reference.param
            if not reference.is_data_url or url in carried.ids:
                continue
            try:
                data = await asyncio.to_thread(decode_data_url, url)
            except ValueError as error:
                raise InvalidInput(param, f"{param} {error}") from None
            room -= len(data)
            if room < 0:
                raise InvalidInput(
                    param,
                    f"{param} is too large: the data URLs of a request may have "
                    f"{self._settings.max_data_url_bytes} bytes together; upload the file "
                    "(POST /v1/files) and give its id",
                )
            upload = stack.enter_context(await asyncio.to_thread(self._receive, data))
            file_id = content_file_id(upload.sha256, owner)
            carried.ids[url] = file_id
            if file_id in carried.uploads or await self._files.touch(file_id) is not None:
                continue
            try:
                carried.uploads[file_id] = (upload, await self._inspector.probe(upload.path))
            except MediaError as error:
                raise InvalidInput(param, f"{param} {error}") from None
        return carried

    def _receive(self, data: bytes) -> Upload:
        return received(self._blobs, data, min_free_bytes=self._settings.min_free_disk_bytes)

    def _link(
        self,
        job_id: str,
        references: Sequence[FileReference],
        records: Mapping[str, FileRecord],
    ) -> None:
        for reference in references:
            key = input_key(job_id, reference.field, reference.index)
            try:
                with disk_errors():
                    self._blobs.link(records[reference.value].blob_key, key)
            except FileNotFoundError:
                # Deleted since it was looked up.
                raise InvalidInput(
                    reference.param, f"{reference.param}: the file {reference.value} has expired"
                ) from None
