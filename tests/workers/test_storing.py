"""Results that nobody wants any more leave no files, those of a job that succeeded stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_harness import (
    PATIENCE_SECONDS,
    Bench,
    HeldBlobs,
    MemoryBlobs,
    PlainRecipes,
    claimed,
    turn_until,
)
from PIL import Image

from jobs.blobs import execution_prefix
from jobs.types import ClaimedJob, Status, Verdict
from workers.background import BackgroundThread
from workers.member import Member
from workers.results import ResultWriter
from workers.storing import StoringQueue


class CountingBlobs(HeldBlobs):
    """Remembers which files were begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[str] = []

    def put(self, key: str, data: bytes) -> None:
        self.begun.append(key)
        super().put(key, data)


class Storage:
    """A queue over `blobs`, and its thread."""

    def __init__(self, blobs: MemoryBlobs) -> None:
        self.background = BackgroundThread("storing")
        self.queue = StoringQueue(
            ResultWriter(blobs, {"fake": PlainRecipes()}),
            self.background,
            stuck_seconds=1e9,
            clock=lambda: 0.0,
        )

    def put(self, job: ClaimedJob) -> Member:
        member = Member(job)
        pictures = [Image.new("RGB", (64, 64))] * job.input["num_images"]
        self.queue.put(member, pictures, decoding_since=0.0)
        return member

    def settle(self) -> None:
        """Until all that was asked for so far is done."""
        settle(self.background)


def settle(background: BackgroundThread) -> None:
    background.submit(lambda: None).result(PATIENCE_SECONDS)


def files_of(blobs: MemoryBlobs, job: ClaimedJob) -> list[str]:
    prefix = execution_prefix(job.id, job.execution_id)
    return [key for key in blobs if key.startswith(f"{prefix}/")]


def test_an_unwanted_result_is_left_before_its_next_file_and_removed() -> None:
    blobs = CountingBlobs()
    storage = Storage(blobs)
    unwanted = storage.put(claimed(num_images=3))
    waiting, other = storage.put(claimed()), storage.put(claimed())
    assert blobs.waiting.wait(PATIENCE_SECONDS)
    storage.queue.discard(unwanted)
    storage.queue.discard(waiting)
    blobs.open.set()
    storage.settle()
    assert [*blobs] == files_of(blobs, other.job)
    # The file that was under way, and none of the one that had not been begun.
    assert [key for key in blobs.begun if key not in blobs] == [
        f"jobs/{unwanted.job.id}/{unwanted.job.execution_id}/0.png"
    ]
    assert [stored.member for stored in storage.queue.collect()] == [other]
    assert storage.queue.num_images == 0


def test_a_result_that_turns_out_unwanted_once_stored_is_removed() -> None:
    blobs = MemoryBlobs()
    storage = Storage(blobs)
    job = claimed()
    first, second = storage.put(job), storage.put(replace(job, execution_id="another"))
    storage.settle()
    storage.queue.discard(first)
    storage.settle()
    assert [*blobs] == files_of(blobs, second.job) != []
    assert [stored.member for stored in storage.queue.collect()] == [second]


def test_a_result_that_was_collected_stays_whoever_drops_its_job() -> None:
    blobs = MemoryBlobs()
    storage = Storage(blobs)
    member = storage.put(claimed())
    storage.settle()
    [stored] = storage.queue.collect()
    storage.queue.discard(member)
    storage.settle()
    assert stored.member is member
    assert len(files_of(blobs, member.job)) == 2


def test_a_result_that_cannot_be_removed_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(prefix: str) -> None:
        raise PermissionError(13, "Permission denied")

    blobs = MemoryBlobs()
    monkeypatch.setattr(blobs, "delete_prefix", fail)
    storage = Storage(blobs)
    unwanted = storage.put(claimed())
    storage.settle()
    storage.queue.discard(unwanted)
    other = storage.put(claimed())
    storage.settle()
    assert [stored.member for stored in storage.queue.collect()] == [other]
    assert len(files_of(blobs, other.job)) == 2


@pytest.mark.parametrize("verdict", [Verdict.CANCEL, Verdict.LEASE_LOST])
def test_a_job_that_is_dropped_while_it_is_stored_leaves_no_files(verdict: Verdict) -> None:
    """Its client may have deleted it before its last file is written."""
    blobs, background = HeldBlobs(), BackgroundThread("storing")
    bench = Bench(blobs=blobs, background=background)
    dropped, other = claimed(num_inference_steps=1), claimed(num_inference_steps=1)
    bench.engine.admit(dropped)
    turn_until(bench, blobs.waiting.is_set)
    bench.engine.post(dropped, verdict)
    bench.engine.turn()
    assert bench.engine.is_idle
    blobs.open.set()
    bench.run(other)
    settle(background)
    assert [*blobs] == files_of(blobs, other) != []
    assert bench.sink.status(other) is Status.SUCCEEDED


def test_an_evicted_job_leaves_no_files() -> None:
    blobs, background = HeldBlobs(), BackgroundThread("storing")
    bench = Bench(blobs=blobs, background=background)
    bench.engine.admit(claimed(num_inference_steps=1))
    turn_until(bench, blobs.waiting.is_set)
    bench.engine.evict()
    blobs.open.set()
    settle(background)
    assert not blobs


def test_a_job_that_succeeded_keeps_its_files_through_a_later_cancel() -> None:
    blobs, background = MemoryBlobs(), BackgroundThread("storing")
    bench, job = Bench(blobs=blobs, background=background), claimed(num_images=2)
    bench.run(job)
    bench.engine.post(job, Verdict.CANCEL)
    bench.engine.turn()
    bench.engine.evict()
    settle(background)
    assert bench.sink.status(job) is Status.SUCCEEDED
    assert {output.key for output in bench.sink.outcomes[job.id].outputs} < {*blobs}
    assert len(blobs) == 4
