"""The keeper over disks that are slow, sick or shared: one bad folder holds up nothing else."""

from __future__ import annotations

import os

import pytest

from config.settings import Settings
from jobs.blobs import FileBlobStore
from jobs.keeper import Keeper


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
