"""Files that come inside requests: a refused one takes nothing from others with the same bytes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings
from jobs import scripts
from jobs.blobs import FileBlobStore, input_key
from jobs.files import FileStore
from jobs.job_inputs import JobInputs
from jobs.media.info import MediaInfo
from jobs.media.inspector import MediaInspector
from tests.media_files import picture
from tests.video_spec import VIDEO_SPEC

OWNER = "0123456789ab"
RAW = {
    "prompt": "x",
    "first_frame": f"data:image/png;base64,{base64.b64encode(picture()).decode()}",
}


class Pictures:
    """Takes every file for a picture."""

    async def probe(self, _path: Path) -> MediaInfo:
        return MediaInfo(kind="image", content_type="image/png", width=64, height=64)


@pytest.fixture
def files(redis: AsyncRedis, blobs: FileBlobStore, settings: Settings) -> FileStore:
    return FileStore(redis, blobs, settings)


@pytest.fixture
def inputs(files: FileStore, blobs: FileBlobStore, settings: Settings) -> JobInputs:
    return JobInputs(files, blobs, cast("MediaInspector", Pictures()), settings)


async def test_a_refused_job_leaves_nothing(
    inputs: JobInputs, files: FileStore, blobs: FileBlobStore
) -> None:
    prepared = await inputs.prepare("job_1", VIDEO_SPEC, RAW, OWNER)
    await inputs.withdraw(prepared)
    assert await files.list(owner=OWNER) == ([], None)
    assert [*blobs.uploads()] == []
    assert not blobs.path(input_key("job_1", "first_frame", None)).exists()


async def test_a_file_recorded_twice_over_a_broken_connection_is_withdrawn_all_the_same(
    inputs: JobInputs, files: FileStore, blobs: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = scripts.run_async

    async def twice(redis: AsyncRedis, script: scripts.Script, args: Any) -> Any:
        await once(redis, script, args)
        return await once(redis, script, args)

    monkeypatch.setattr(scripts, "run_async", twice)
    await inputs.withdraw(await inputs.prepare("job_1", VIDEO_SPEC, RAW, OWNER))
    assert await files.list(owner=OWNER) == ([], None)


async def test_a_refused_job_leaves_the_file_to_another_that_came_with_the_same(
    inputs: JobInputs, files: FileStore, blobs: FileBlobStore
) -> None:
    refused = await inputs.prepare("job_1", VIDEO_SPEC, RAW, OWNER)
    other = await inputs.prepare("job_2", VIDEO_SPEC, RAW, OWNER)
    await inputs.withdraw(refused)
    [file], _ = await files.list(owner=OWNER)
    assert other.resolved["first_frame"] == refused.resolved["first_frame"] == file.id
    assert blobs.read(file.blob_key) == picture()
    assert blobs.read(input_key("job_2", "first_frame", None)) == picture()
    # As the record of the job names it, it can be submitted again.
    again = await inputs.prepare("job_3", VIDEO_SPEC, other.resolved, OWNER)
    assert again.resolved == other.resolved


async def test_a_refused_job_leaves_the_file_whose_place_its_own_has_taken(
    inputs: JobInputs, files: FileStore, blobs: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found none, and the refused one came second: both names are one file by now."""

    async def none_yet(_file_id: str) -> None:
        return None

    accepted = await inputs.prepare("job_1", VIDEO_SPEC, RAW, OWNER)
    monkeypatch.setattr(files, "touch", none_yet)
    refused = await inputs.prepare("job_2", VIDEO_SPEC, RAW, OWNER)
    assert refused.created[0].blob_key != accepted.created[0].blob_key
    await inputs.withdraw(refused)
    file = await files.get(accepted.created[0].id, OWNER)
    assert blobs.read(file.blob_key) == picture()


async def test_a_refused_job_leaves_the_file_that_has_taken_the_place_of_its_own(
    inputs: JobInputs, files: FileStore, blobs: FileBlobStore
) -> None:
    """Both found none, and both made one."""
    refused = await inputs.prepare("job_1", VIDEO_SPEC, RAW, OWNER)
    [first] = refused.created
    await files.delete(first.id, OWNER)
    await inputs.prepare("job_2", VIDEO_SPEC, RAW, OWNER)
    await inputs.withdraw(refused)
    file = await files.get(first.id, OWNER)
    assert file.blob_key != first.blob_key
    assert blobs.read(file.blob_key) == picture()
