"""A disk that takes nothing for a while costs no result; one that never does fails the file."""

from __future__ import annotations

import errno
import os

import pytest
from engine_harness import Clock, MemoryBlobs

from workers.patient_blobs import RETRY_SECONDS, Patience, PatientBlobs, PatientReads


class FullUntil(MemoryBlobs):
    """Takes and gives nothing before a time on `clock`."""

    def __init__(self, clock: Clock, opens_at: float) -> None:
        super().__init__()
        self.clock = clock
        self.opens_at = opens_at
        self.tries = 0

    def put(self, key: str, data: bytes) -> None:
        self.try_it(errno.ENOSPC)
        super().put(key, data)

    def read(self, key: str) -> bytes:
        self.try_it(errno.ESTALE)
        return super().read(key)

    def try_it(self, error: int) -> None:
        self.tries += 1
        if self.clock() < self.opens_at:
            raise OSError(error, os.strerror(error))


def patient(seconds_full: float, retry_seconds: float = 1000.0) -> tuple[PatientBlobs, FullUntil]:
    clock = Clock()
    disk = FullUntil(clock, clock.now + seconds_full)
    wait = clock.wait
    return PatientBlobs(disk, Patience(retry_seconds, clock=clock, wait=wait)), disk


def test_a_full_disk_is_waited_out_without_hammering_it() -> None:
    blobs, disk = patient(RETRY_SECONDS - 5)
    blobs.put("jobs/a/b/0.png", b"data")
    assert disk == {"jobs/a/b/0.png": b"data"}
    assert disk.tries < RETRY_SECONDS


@pytest.mark.parametrize("retry_seconds", [4.0, 1000.0])
def test_a_disk_that_stays_full_fails_the_file_in_time(retry_seconds: float) -> None:
    blobs, disk = patient(1e9, retry_seconds)
    began = disk.clock.now
    with pytest.raises(OSError, match="No space left"):
        blobs.put("jobs/a/b/0.png", b"data")
    assert disk.clock.now - began <= min(retry_seconds, RETRY_SECONDS)
    assert disk == {}


def test_what_is_no_fault_of_the_disk_is_not_tried_again() -> None:
    blobs, disk = patient(0.0)
    blobs.put("jobs/a/b/0.png", b"data")
    with pytest.raises(AssertionError):
        blobs.put("jobs/a/b/0.png", b"again")
    assert disk.tries == 2


@pytest.mark.parametrize("seconds_away", [RETRY_SECONDS - 5, RETRY_SECONDS + 5])
def test_a_file_that_cannot_be_read_is_waited_for_and_one_that_is_gone_is_not(
    seconds_away: float,
) -> None:
    clock = Clock()
    disk = FullUntil(clock, clock.now + seconds_away)
    disk["jobs/a/b"] = b"data"
    blobs = PatientReads(disk, Patience(clock=clock, wait=clock.wait))
    if seconds_away < RETRY_SECONDS:
        assert blobs.read("jobs/a/b") == b"data"
    else:
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            blobs.read("jobs/a/b")
    assert disk.tries < RETRY_SECONDS
    disk.opens_at, disk.tries = 0.0, 0
    with pytest.raises(FileNotFoundError):
        blobs.read("jobs/a/c")
    assert disk.tries == 1
