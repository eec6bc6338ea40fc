"""Reports over a Redis that comes and goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
from engine_harness import Clock, claimed

from jobs.errors import StoreUnavailable
from jobs.lease import RETRY_SECONDS, LeaseClient
from jobs.types import ClaimedJob, Outcome, Progress, Stage, Status, Verdict
from workers.heartbeat import Pulse
from workers.steady_sink import PAUSE_SECONDS, SteadySink

UPDATE = Progress(claimed(), Stage.DENOISING, 1, 4)


class Lease:
    """Answers CANCEL unless it is away."""

    def __init__(self) -> None:
        self.is_away = False
        self.calls = 0

    def report(self, updates: Sequence[Progress], *, retry_seconds: float) -> list[Verdict]:
        assert retry_seconds == 0
        self.calls += 1
        if self.is_away:
            raise StoreUnavailable("away")
        return [Verdict.CANCEL] * len(updates)

    def restarted(self, job: ClaimedJob, cause: str) -> bool:
        return True

    def finish(self, job: ClaimedJob, outcome: Outcome) -> bool:
        return True


@pytest.fixture
def lease() -> Lease:
    return Lease()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sink(lease: Lease, clock: Clock) -> SteadySink:
    return SteadySink(cast("LeaseClient", lease), Pulse(), clock=clock)


def test_verdicts_pass_through(sink: SteadySink) -> None:
    assert sink.report([UPDATE, UPDATE]) == [Verdict.CANCEL] * 2
    assert not sink.is_away


def test_steps_go_on_while_redis_is_away_and_verdicts_return_with_it(
    sink: SteadySink, lease: Lease, clock: Clock
) -> None:
    lease.is_away = True
    assert sink.report([UPDATE]) == [Verdict.CONTINUE]
    assert sink.is_away
    lease.is_away = False
    clock.wait(PAUSE_SECONDS)
    assert sink.report([UPDATE]) == [Verdict.CANCEL]
    assert not sink.is_away


def test_an_absent_redis_is_not_asked_at_every_step(
    sink: SteadySink, lease: Lease, clock: Clock
) -> None:
    lease.is_away = True
    for _ in range(100):
        sink.report([UPDATE])
        clock.wait(PAUSE_SECONDS / 10)
    assert lease.calls <= 11


def test_after_a_minute_it_gives_up_and_then_starts_afresh(
    sink: SteadySink, lease: Lease, clock: Clock
) -> None:
    lease.is_away = True
    sink.report([UPDATE])
    clock.wait(RETRY_SECONDS)
    with pytest.raises(StoreUnavailable):
        sink.report([UPDATE])
    assert sink.report([UPDATE]) == [Verdict.CONTINUE]


def test_a_delivered_result_shows_that_redis_is_back(sink: SteadySink, lease: Lease) -> None:
    lease.is_away = True
    sink.report([UPDATE])
    assert sink.finish(UPDATE.job, Outcome(Status.SUCCEEDED))
    assert not sink.is_away
