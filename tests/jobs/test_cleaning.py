"""The keeper over disks that are slow, sick or shared: one bad folder holds up nothing else."""

from __future__ import annotations

import os
import threading
import time
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
from tests.jobs.conftest import MODEL, ClaimOne, Lapse, MakeJob

# Reached only when something is broken.
PATIENCE_SECONDS = 30.0


class SickDisk(FileBlobStore):
    """A disk that removes nothing below the prefixes in `stuck`."""

    stuck: frozenset[str] = frozenset()

    def delete_prefix(self, prefix: str) -> None:
        if prefix in self.stuck:
            raise PermissionError(13, "Permission denied", prefix)
        super().delete_prefix(prefix)


class HeldDisk(FileBlobStore):
    """A disk whose folders are not listed before `open` is set; `waiting` tells of a walk."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.blob_dir)
        self.open = threading.Event()
        self.waiting = threading.Event()

    def executions(self) -> Iterator[ExecutionBlobs]:
        self.waiting.set()
        assert self.open.wait(PATIENCE_SECONDS)
        return super().executions()


class UnreadableDisk(FileBlobStore):
    """A disk that cannot be walked over; counts how often that was tried."""

    walks = 0

    def executions(self) -> Iterator[ExecutionBlobs]:
        self.walks += 1
        raise OSError(5, "Input/output error")


async def test_jobs_are_taken_back_while_a_walk_over_the_folders_goes_on(
    redis_client: Redis,
    settings: Settings,
    store: JobStore,
    make_job: MakeJob,
    worker: LeaseClient,
    keeper: Keeper,
    lapse: Lapse,
) -> None:
    stop = threading.Event()
    disk = HeldDisk(settings)
    stray = f"jobs/{make_job().id}/execution/0.png"
    disk.put(stray, b"png")
    os.utime(disk.path(stray).parent, (1, 1))
    thread = threading.Thread(target=Keeper(redis_client, settings, disk).run, args=(stop,))
    thread.start()
    try:
        assert disk.waiting.wait(PATIENCE_SECONDS)
        await store.submit(make_job())
        # One round after another, not only the one that the walk began in.
        for attempt in (1, 2, 3):
            [job] = worker.claim([MODEL], 1)
            assert job.attempt == attempt
            lapse(job)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while (await store.get(job.id)).status is Status.RUNNING:
                assert time.monotonic() < deadline, "the job was not taken back"
                time.sleep(0.01)
        assert disk.path(stray).exists()
        disk.open.set()
        while disk.path(stray).exists():
            assert time.monotonic() < deadline, "the walk did not go on"
            time.sleep(0.01)
    finally:
        disk.open.set()
        stop.set()
        thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


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


def test_a_walk_that_fails_does_not_end_the_cleaning(
    redis_client: Redis, settings: Settings
) -> None:
    stop = threading.Event()
    disk = UnreadableDisk(settings.blob_dir)
    keeper = Keeper(redis_client, settings, disk, sweep_seconds=0)
    thread = threading.Thread(target=keeper.run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while disk.walks < 3:
        assert time.monotonic() < deadline, "no walk was begun again"
        time.sleep(0.01)
    stop.set()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


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
