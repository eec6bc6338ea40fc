"""The file blob store: whole files, kept inside its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.blobs import FileBlobStore, job_prefix, output_key


def test_a_blob_comes_back(tmp_path: Path) -> None:
    store = FileBlobStore(tmp_path / "made" / "when needed")
    key = output_key("job_1", "abc-1", 0, "png")
    store.put(key, b"one")
    store.put(key, b"two")
    assert store.read(key) == b"two"
    with store.open(key) as file:
        assert file.read() == b"two"
    assert store.path(key).read_bytes() == b"two"
    assert [path.name for path in store.path(key).parent.iterdir()] == ["0.png"]


def test_a_failed_write_leaves_the_old_blob_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileBlobStore(tmp_path)
    store.put("jobs/a/b/0.png", b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        store.put("jobs/a/b/0.png", b"new")
    monkeypatch.undo()
    assert store.read("jobs/a/b/0.png") == b"old"
    assert len(list((tmp_path / "jobs/a/b").iterdir())) == 1


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "..",
        "../x",
        "jobs/../../x",
        "jobs/./x",
        "jobs//x",
        "jobs/x/",
        ".hidden",
        "jobs/.hidden",
        "a\\b",
        "a\x00b",
        "a\n",
        "x" * 600,
        "jobs/ü",
    ],
)
def test_a_key_that_could_leave_the_folder_is_refused(tmp_path: Path, key: str) -> None:
    store = FileBlobStore(tmp_path)
    for call in (store.path, store.read, store.open, store.delete, store.delete_prefix):
        with pytest.raises(ValueError, match="is not a blob key"):
            call(key)
    with pytest.raises(ValueError, match="is not a blob key"):
        store.put(key, b"x")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="./\\-_aZ0\x00\n~$", max_size=24))
def test_no_accepted_key_leaves_the_folder(tmp_path: Path, key: str) -> None:
    try:
        path = FileBlobStore(tmp_path).path(key)
    except ValueError:
        return
    assert path.resolve().is_relative_to(tmp_path.resolve())
    assert path.resolve() != tmp_path.resolve()


def test_what_is_not_there_reads_as_missing_and_deletes_as_done(tmp_path: Path) -> None:
    store = FileBlobStore(tmp_path)
    with pytest.raises(FileNotFoundError):
        store.read("jobs/a/b/0.png")
    store.delete("jobs/a/b/0.png")
    store.delete_prefix("jobs/a")
    assert list(store.executions()) == []


def test_a_prefix_goes_with_everything_below_and_nothing_beside(tmp_path: Path) -> None:
    store = FileBlobStore(tmp_path)
    for key in ("jobs/a/x/0.png", "jobs/a/y/0.png", "jobs/ab/x/0.png"):
        store.put(key, b"png")
    assert {(found.job_id, found.execution_id) for found in store.executions()} == {
        ("a", "x"),
        ("a", "y"),
        ("ab", "x"),
    }
    store.delete_prefix(job_prefix("a"))
    assert [found.prefix for found in store.executions()] == ["jobs/ab/x"]
    store.delete("jobs/ab/x/0.png")
    with pytest.raises(FileNotFoundError):
        store.read("jobs/ab/x/0.png")
