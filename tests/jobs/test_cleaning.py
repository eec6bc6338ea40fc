"""The keeper over disks that are slow, sick or shared: one bad folder holds up nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from redis import Redis

from config.settings import Settings
from jobs import keeper as keeper_module
from jobs.blobs import ExecutionBlobs, FileBlobStore
from jobs.keeper import Keeper
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import Outcome, Status
from tests.jobs.conftest import ClaimOne, MakeJob


class SickDisk(FileBlobStore):
    """A disk that removes nothing below the prefixes in `stuck`."""

    stuck: frozenset[str] = frozenset()

    def delete_prefix(self, prefix: str) -> None:
        if prefix in self.stuck:
            raise PermissionError(13, "Permission denied", prefix)
        super().delete_prefix(prefix)


class UnreadableDisk(FileBlobStore):
    """A disk that cannot be walked over; counts how often that was tried."""

    walks = 0

    def executions(self) -> Iterator[ExecutionBlobs]:
        self.walks += 1
        raise OSError(5, "Input/output error")


async def test_what_cannot_be_removed_is_tried_again_after_all_others(
    redis_client: Redis,
    settings: Settings,
    claim_one: ClaimOne,
    worker: LeaseClient,
    keeper: Keeper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeper_module, "BATCH", 1)
    bad, good = await claim_one(), await claim_one()
    for score, job in ((1, bad), (2, good)):
        worker.finish(job, Outcome(Status.SUCCEEDED))
        redis_client.zadd("denoised:expiry", {job.id: score})
    disk = SickDisk(settings.blob_dir)
    disk.put(f"jobs/{bad.id}/{bad.execution_id}/0.png", b"png")
    disk.stuck = frozenset({f"jobs/{bad.id}"})
    keeper = Keeper(redis_client, settings, disk, sweep_seconds=0)
    assert [keeper.run_once().expired for _ in range(3)] == [0, 1, 0]
    assert redis_client.zrange("denoised:expiry", 0, -1) == [bad.id.encode()]
    assert redis_client.exists(f"rq:job:{bad.id}")
    disk.stuck = frozenset()
    assert keeper.run_once().expired == 1
    assert list(disk.executions()) == []


async def test_what_cannot_be_removed_waits_for_a_sweep_before_it_is_tried_again(
    redis_client: Redis, settings: Settings, keeper: Keeper
) -> None:
    disk = SickDisk(settings.blob_dir)
    disk.stuck = frozenset({"jobs/bad"})
    redis_client.zadd("denoised:expiry", {"bad": 1})
    before = redis_client.time()[0]
    Keeper(redis_client, settings, disk, sweep_seconds=1000).run_once()
    again = redis_client.zscore("denoised:expiry", "bad")
    assert again is not None
    assert again >= before + 1000


async def test_a_stray_folder_that_cannot_be_removed_spares_no_other(
    redis_client: Redis,
    settings: Settings,
    store: JobStore,
    make_job: MakeJob,
) -> None:
    disk = SickDisk(settings.blob_dir)
    ids = [(await store.submit(make_job()))[0].id for _ in range(3)]
    for id_ in ids:
        disk.put(f"jobs/{id_}/stray/0.png", b"png")
    disk.stuck = frozenset({f"jobs/{ids[1]}/stray"})
    keeper = Keeper(redis_client, settings, disk, orphan_grace_seconds=0, sweep_seconds=0)
    assert keeper.run_once().orphans == 2
    assert [found.job_id for found in disk.executions()] == [ids[1]]


def test_a_walk_that_failed_is_not_begun_anew_each_round(
    redis_client: Redis, settings: Settings
) -> None:
    disk = UnreadableDisk(settings.blob_dir)
    keeper = Keeper(redis_client, settings, disk, sweep_seconds=1000)
    with pytest.raises(OSError, match="Input/output error"):
        keeper.run_once()
    keeper.run_once()
    assert disk.walks == 1


@pytest.mark.parametrize("stranger", [".snapshot", "@eaDir", "lost+found"])
def test_folders_that_bear_no_keys_name_are_left_alone(
    settings: Settings, blobs: FileBlobStore, keeper: Keeper, stranger: str
) -> None:
    """A file server puts its own among the jobs' folders, and into them."""
    blobs.put("jobs/unknown/execution/0.png", b"png")
    jobs = settings.blob_dir / "jobs"
    strange = [jobs / stranger / "hourly", jobs / "unknown" / stranger]
    for folder in strange:
        folder.mkdir(parents=True)
    for folder in (*strange, jobs / "unknown" / "execution"):
        os.utime(folder, (1, 1))
    assert keeper.run_once().orphans == 1
    assert all(folder.exists() for folder in strange)


def test_uploads_beside_files_of_strangers_are_swept(
    settings: Settings, blobs: FileBlobStore, keeper: Keeper
) -> None:
    blobs.put("files/old.png", b"png")
    # No key, and no text that Redis could be asked for.
    strange = settings.blob_dir / "files" / os.fsdecode(b"caf\xe9@")
    strange.touch()
    for path in (strange, blobs.path("files/old.png")):
        os.utime(path, (1, 1))
    assert keeper.run_once().orphans == 1
    assert strange.exists()
