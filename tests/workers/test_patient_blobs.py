"""A disk that takes nothing for a while costs no result; one that never does fails the file."""

from __future__ import annotations

import errno

import pytest
from engine_harness import Clock, MemoryBlobs

from workers.patient_blobs import RETRY_SECONDS, PatientBlobs


class FullUntil(MemoryBlobs):
    """Takes nothing before a time on `clock`."""

    def __init__(self, clock: Clock, opens_at: float) -> None:
        super().__init__()
        self.clock = clock
        self.opens_at = opens_at
        self.tries = 0

    def put(self, key: str, data: bytes) -> None:
        self.tries += 1
        if self.clock() < self.opens_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().put(key, data)


def patient(seconds_full: float, retry_seconds: float = 1000.0) -> tuple[PatientBlobs, FullUntil]:
    clock = Clock()
    disk = FullUntil(clock, clock.now + seconds_full)
    wait = clock.wait
    return PatientBlobs(disk, retry_seconds=retry_seconds, clock=clock, wait=wait), disk


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
