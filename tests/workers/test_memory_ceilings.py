"""What ran out of memory is remembered: by the engine, over restarts, and not for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_harness import Bench, Clock, claimed

from jobs.types import Status
from workers.batch_limits import BatchLimits
from workers.memory_ceilings import FORGET_SECONDS, MemoryCeilings

KEY = ("model", ("model", (32, 4, 4), True))
OTHER = ("model", ("model", (32, 8, 8), True))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "memory_ceilings.json"


def test_a_ceiling_holds_for_its_shape_and_device_only_and_over_a_restart(path: Path) -> None:
    MemoryCeilings(path, "NVIDIA H100").lower(KEY, 4)
    again = MemoryCeilings(path, "NVIDIA H100")
    assert again.of(KEY) == 4
    assert again.of(OTHER) is None
    assert MemoryCeilings(path, "NVIDIA L4").of(KEY) is None


def test_a_ceiling_only_falls(path: Path) -> None:
    ceilings = MemoryCeilings(path, "cpu")
    for images in (4, 8, 2):
        ceilings.lower(KEY, images)
    assert MemoryCeilings(path, "cpu").of(KEY) == 2


def test_two_workers_add_to_one_file(path: Path) -> None:
    first, second = MemoryCeilings(path, "cpu"), MemoryCeilings(path, "cpu")
    first.lower(KEY, 4)
    second.lower(OTHER, 2)
    both = MemoryCeilings(path, "cpu")
    assert (both.of(KEY), both.of(OTHER)) == (4, 2)


def test_it_is_forgotten_after_a_week(path: Path) -> None:
    clock = Clock()
    MemoryCeilings(path, "cpu", clock=clock).lower(KEY, 4)
    clock.wait(FORGET_SECONDS + 1)
    assert MemoryCeilings(path, "cpu", clock=clock).of(KEY) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": {"images": 0, "at": 9e9}}'])
def test_a_damaged_file_is_started_afresh(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    ceilings = MemoryCeilings(path, "cpu")
    assert ceilings.of(KEY) is None
    ceilings.lower(KEY, 4)
    assert MemoryCeilings(path, "cpu").of(KEY) == 4


def test_a_file_that_cannot_be_written_is_remembered_as_long_as_the_process_lives(
    tmp_path: Path,
) -> None:
    (tmp_path / "data").write_text("not a folder")
    ceilings = MemoryCeilings(tmp_path / "data" / "ceilings.json", "cpu")
    ceilings.lower(KEY, 4)
    assert ceilings.of(KEY) == 4


def test_a_restarted_worker_does_not_run_out_of_memory_at_the_same_size_again(path: Path) -> None:
    def overhead_bound(images: int) -> float:
        return 0.1 + 0.01 * images

    def largest_batch() -> int:
        limits = BatchLimits(16, MemoryCeilings(path, "cpu"))
        bench = Bench(seconds=overhead_bound, limits=limits)
        for _ in range(20):
            jobs = [claimed("oom-above:3", num_inference_steps=8) for _ in range(8)]
            bench.run(*jobs)
            assert {bench.sink.status(job) for job in jobs} == {Status.SUCCEEDED}
        return max(map(len, bench.pipeline.batches))

    assert largest_batch() > 3
    assert largest_batch() == 2
