"""Files checked in other processes: what they do there does not reach this one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.media import inspector as inspector_module
from jobs.media.info import ChecksBusy, MediaError, MediaLimits
from jobs.media.inspector import MediaInspector
from tests.media_files import picture, slow_animation

LIMITS = MediaLimits(
    max_pixels=4096, max_frames=40, max_total_pixels=100_000, max_duration_seconds=10
)


@pytest.fixture
def inspector() -> Iterator[MediaInspector]:
    made = MediaInspector(LIMITS, seconds=20)
    yield made
    made.close()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good"
    path.write_bytes(picture())
    return path


def helpers(inspector: MediaInspector) -> set[int]:
    lanes = (inspector._quick, inspector._slow)
    return {helper._process.pid for lane in lanes for helper in lane.helpers}


async def test_a_helper_serves_one_file_after_another(
    inspector: MediaInspector, good: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad").write_text("not a picture")
    assert (await inspector.probe(good)).kind == "image"
    first = helpers(inspector)
    with pytest.raises(MediaError, match="not accepted"):
        await inspector.probe(tmp_path / "bad")
    assert (await inspector.probe(good)).kind == "image"
    assert helpers(inspector) == first


async def test_files_are_checked_at_the_same_time(inspector: MediaInspector, good: Path) -> None:
    infos = await asyncio.gather(*(inspector.probe(good) for _ in range(6)))
    assert {info.kind for info in infos} == {"image"}
    assert len(helpers(inspector)) <= inspector_module.HELPERS


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    path = tmp_path / "slow"
    path.write_bytes(slow_animation(8))
    return path


@pytest.fixture
def patient() -> Iterator[MediaInspector]:
    """An inspector with room for what is slow to decode."""
    limits = LIMITS.model_copy(update={"max_pixels": 2000 * 2000, "max_total_pixels": 10**9})
    made = MediaInspector(limits, seconds=60)
    yield made
    made.close()


async def test_a_file_that_takes_too_long_is_refused_and_the_next_one_served(
    patient: MediaInspector, good: Path, slow: Path
) -> None:
    patient._seconds = 0.1
    with pytest.raises(MediaError, match=r"more than 0\.1 seconds of processor time"):
        await patient.probe(slow)
    assert len(helpers(patient)) == 1
    assert (await patient.probe(good)).kind == "image"


async def test_a_decoder_that_does_not_come_back_in_time_is_ended(
    good: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "endless")
    made = MediaInspector(LIMITS, seconds=inspector_module.QUICK_SECONDS)
    try:
        await made.probe(good)
        [pid] = helpers(made)
        asking = asyncio.create_task(made.probe(tmp_path / "endless"))
        with await asyncio.to_thread((tmp_path / "endless").open, "wb"):
            # As its limit does it.
            os.kill(pid, signal.SIGXCPU)
            with pytest.raises(MediaError, match="more than 1 seconds of processor time"):
                await asking
    finally:
        made.close()


async def test_a_file_is_not_blamed_for_a_machine_that_has_no_time(tmp_path: Path) -> None:
    # Opening a pipe for reading waits for a writer, which never comes: no time is spent.
    os.mkfifo(tmp_path / "endless")
    hasty = MediaInspector(LIMITS, seconds=0.02)
    try:
        with pytest.raises(ChecksBusy) as refused:
            await hasty.probe(tmp_path / "endless")
        assert refused.value.retry_after >= 1
    finally:
        hasty.close()


async def test_slow_files_hold_up_each_other_and_not_the_quick_ones(
    patient: MediaInspector, good: Path, slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.gather(patient.probe(good), patient.probe(good))
    monkeypatch.setattr(inspector_module, "QUICK_SECONDS", 0.05)
    checks = [asyncio.create_task(patient.probe(slow)) for _ in range(4)]
    await asyncio.sleep(0)
    assert (await patient.probe(good)).kind == "image"
    assert not any(check.done() for check in checks)
    # What is slow is looked at to its end all the same.
    assert {info.num_frames for info in await asyncio.gather(*checks)} == {8}
    assert len(helpers(patient)) <= 2 * inspector_module.HELPERS


async def test_more_files_than_may_wait_are_refused_and_taken_later(
    inspector: MediaInspector, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector_module, "MAX_WAITING", 3)
    checks = [asyncio.create_task(inspector.probe(good)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(ChecksBusy):
        await inspector.probe(good)
    await asyncio.gather(*checks)
    assert (await inspector.probe(good)).kind == "image"


async def test_a_helper_brought_down_by_a_file_takes_only_that_file_with_it(
    inspector: MediaInspector, good: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fatal")
    await inspector.probe(good)
    [pid] = helpers(inspector)
    asking = asyncio.create_task(inspector.probe(tmp_path / "fatal"))
    # Opening for writing returns once the helper has opened the pipe for reading.
    with await asyncio.to_thread((tmp_path / "fatal").open, "wb"):
        os.kill(pid, signal.SIGSEGV)
        with pytest.raises(MediaError, match="makes the decoder fail"):
            await asking
    assert (await inspector.probe(good)).kind == "image"
    assert pid not in helpers(inspector)


async def test_a_helper_that_died_while_idle_is_replaced(
    inspector: MediaInspector, good: Path
) -> None:
    await inspector.probe(good)
    [helper] = inspector._quick.helpers
    helper.kill()
    helper._process.wait()
    assert (await inspector.probe(good)).kind == "image"


async def test_a_helper_that_cannot_start_is_not_blamed_on_the_file(
    inspector: MediaInspector, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector_module, "_COMMAND", ("false",))
    with pytest.raises(RuntimeError, match=r"did not start \(status 1\)"):
        await inspector.probe(good)


async def test_closing_ends_every_helper(good: Path) -> None:
    made = MediaInspector(LIMITS, seconds=20)
    await made.probe(good)
    processes = [helper._process for helper in made._quick.helpers]
    made.close()
    assert all(process.poll() is not None for process in processes)
    with pytest.raises(RuntimeError):
        await made.probe(good)
