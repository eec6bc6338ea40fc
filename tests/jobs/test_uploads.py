"""Bytes on their way into the blob store, and links between blobs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from redis import Redis

from config.settings import Settings
from jobs.blobs import FileBlobStore
from jobs.errors import DiskFull, FileTooLarge
from jobs.keeper import PARTIAL_SECONDS, Keeper
from jobs.uploads import CHECK_BYTES, Upload, received


def names(blobs: FileBlobStore) -> list[str]:
    return [found.name for found in blobs.uploads()]


def test_what_is_kept_is_what_was_written(blobs: FileBlobStore) -> None:
    with Upload(blobs, max_bytes=100) as upload:
        upload.write(b"one ")
        upload.write(b"two")
        upload.keep("files/file_1.a")
    assert (upload.size, upload.sha256) == (7, hashlib.sha256(b"one two").hexdigest())
    assert blobs.read("files/file_1.a") == b"one two"
    assert names(blobs) == ["file_1.a"]


def test_what_is_not_kept_is_gone(blobs: FileBlobStore) -> None:
    with Upload(blobs, max_bytes=100) as upload:
        upload.write(b"one")
        [part] = blobs.uploads()
        assert part.is_partial
    assert names(blobs) == []
    with received(blobs, b"all at once") as upload:
        assert upload.path.read_bytes() == b"all at once"
    assert names(blobs) == []


def test_one_byte_too_many_is_refused(blobs: FileBlobStore) -> None:
    with Upload(blobs, max_bytes=4) as upload:
        upload.write(b"1234")
        with pytest.raises(FileTooLarge, match="more than 4 bytes"):
            upload.write(b"5")
    assert names(blobs) == []


def test_a_disk_that_runs_short_of_room_meanwhile_refuses_the_rest(
    blobs: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results and checkpoints need what is left; several uploads may have begun at once."""
    monkeypatch.setattr(FileBlobStore, "free_bytes", lambda _: 1000)
    piece = bytes(CHECK_BYTES // 4)
    with Upload(blobs, max_bytes=2**30, min_free_bytes=1000) as upload:
        for _ in range(3):
            upload.write(piece)
        monkeypatch.setattr(FileBlobStore, "free_bytes", lambda _: 999)
        with pytest.raises(DiskFull):
            upload.write(piece)
    assert names(blobs) == []


def test_a_linked_blob_outlives_its_source(blobs: FileBlobStore) -> None:
    blobs.put("files/file_1.a", b"bytes")
    blobs.link("files/file_1.a", "jobs/job_1/inputs/video")
    blobs.delete("files/file_1.a")
    assert blobs.read("jobs/job_1/inputs/video") == b"bytes"
    with pytest.raises(FileNotFoundError):
        blobs.link("files/file_1.a", "jobs/job_1/inputs/mask")


def test_a_blob_is_copied_where_it_cannot_be_linked(
    blobs: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    blobs.put("files/file_1.a", b"bytes")
    blobs.link("files/file_1.a", "jobs/job_1/inputs/video")
    assert blobs.read("jobs/job_1/inputs/video") == b"bytes"


def test_the_keeper_sweeps_what_broken_uploads_and_lost_records_leave(
    redis_client: Redis, settings: Settings, blobs: FileBlobStore, keeper: Keeper
) -> None:
    for blob in ("file_live.a", "file_live.old", "file_lost.a"):
        blobs.put(f"files/{blob}", b"x")
    redis_client.hset("denoised:file:file_live", mapping={"blob": "file_live.a", "data": "{}"})
    handle, part = blobs.new_part("files")
    handle.close()
    # One that its record has replaced goes at once; what Redis does not know, after its time.
    assert keeper.run_once().orphans == 1
    assert {"file_live.a", "file_lost.a", part.name} == set(names(blobs))
    blob = blobs.path("files/file_lost.a")
    aged = blob.stat().st_mtime - settings.file_ttl_seconds - 1
    os.utime(blob, (aged, aged))
    aged = part.stat().st_mtime - PARTIAL_SECONDS - 1
    os.utime(part, (aged, aged))
    assert keeper.run_once().orphans == 2
    assert names(blobs) == ["file_live.a"]


def test_the_keeper_takes_expired_files_out_of_the_listing(
    redis_client: Redis, settings: Settings, keeper: Keeper
) -> None:
    now_us = redis_client.time()[0] * 1e6
    long_ago = now_us - (settings.file_ttl_seconds + 1) * 1e6
    redis_client.zadd(
        "denoised:files", {"file_gone": long_ago, "file_renewed": long_ago, "file_new": now_us}
    )
    redis_client.hset("denoised:file:file_renewed", "data", "{}")
    keeper.run_once()
    assert redis_client.zrange("denoised:files", 0, -1) == [b"file_renewed", b"file_new"]
