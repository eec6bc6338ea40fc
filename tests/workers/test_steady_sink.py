"""Reports over a Redis that comes and goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
from engine_harness import Clock, claimed

from jobs.connections import SOCKET_TIMEOUT
from jobs.errors import StoreUnavailable
from jobs.lease import RETRY_SECONDS, LeaseClient
from jobs.types import ClaimedJob, Outcome, Progress, Stage, Status, Verdict
from workers.heartbeat import Pulse
from workers.steady_sink import PAUSE_SECONDS, SteadySink

UPDATE = Progress(claimed(), Stage.DENOISING, 1, 4)


class Lease:
    """Answers CANCEL unless it is away; then every call fails after `timeout` seconds."""

    def __init__(self, clock: Clock) -> None:
        self.is_away = False
        self.timeout = 0.0
        self.calls = 0
        self._clock = clock

    def report(self, updates: Sequence[Progress], *, retry_seconds: float) -> list[Verdict]:
        assert retry_seconds == 0
        self._ask()
        return [Verdict.CANCEL] * len(updates)

    def _ask(self) -> None:
        self.calls += 1
        if self.is_away:
            self._clock.wait(self.timeout)
            raise StoreUnavailable("away")

    def restarted(self, job: ClaimedJob, cause: str) -> bool:
        return True

    def finish(self, job: ClaimedJob, outcome: Outcome, *, retry_seconds: float) -> bool:
        assert retry_seconds == 0
        self._ask()
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease(clock: Clock) -> Lease:
    return Lease(clock)


@pytest.fixture
def sink(lease: Lease, clock: Clock) -> SteadySink:
    return SteadySink(cast("LeaseClient", lease), Pulse(), clock=clock)


def step_for(seconds: float, sink: SteadySink, clock: Clock) -> int:
    """How many steps of a tenth of a second are taken and reported in this time."""
    started, steps = clock.now, 0
    while clock.now < started + seconds:
        clock.wait(0.1)
        steps += 1
        sink.report([UPDATE])
    return steps


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


def test_most_of_the_time_is_left_for_steps_while_redis_answers_nobody(
    sink: SteadySink, lease: Lease, clock: Clock
) -> None:
    lease.is_away, lease.timeout = True, SOCKET_TIMEOUT
    assert step_for(50.0, sink, clock) >= 450


def test_the_heartbeats_word_brings_verdicts_back_before_the_pause_is_over(
    sink: SteadySink, lease: Lease, clock: Clock
) -> None:
    lease.is_away, lease.timeout = True, SOCKET_TIMEOUT
    sink.report([UPDATE])
    lease.is_away = False
    clock.wait(1.0)
    assert sink.report([UPDATE]) == [Verdict.CONTINUE]
    sink.note_answer()
    assert sink.report([UPDATE]) == [Verdict.CANCEL]


def test_the_heartbeats_word_is_good_for_one_attempt(
    sink: SteadySink, lease: Lease, clock: Clock
) -> None:
    lease.is_away, lease.timeout = True, SOCKET_TIMEOUT
    sink.report([UPDATE])
    clock.wait(1.0)
    sink.note_answer()
    for _ in range(10):
        sink.report([UPDATE])
        clock.wait(1.0)
    assert lease.calls == 2


def test_a_redis_that_another_call_has_missed_is_not_asked_at_once(
    sink: SteadySink, lease: Lease, clock: Clock
) -> None:
    clock.wait(SOCKET_TIMEOUT)
    sink.note_failure(StoreUnavailable("away"), asked_at=clock.now - SOCKET_TIMEOUT)
    assert sink.is_away
    assert sink.report([UPDATE]) == [Verdict.CONTINUE]
    assert lease.calls == 0


@pytest.mark.parametrize("timeout", [0.0, SOCKET_TIMEOUT])
def test_it_gives_up_soon_after_a_minute_however_long_a_call_takes(
    sink: SteadySink, lease: Lease, clock: Clock, timeout: float
) -> None:
    lease.is_away, lease.timeout = True, timeout
    sink.report([UPDATE])
    away_since = clock.now
    with pytest.raises(StoreUnavailable):
        step_for(2 * RETRY_SECONDS, sink, clock)
    assert RETRY_SECONDS <= clock.now - away_since <= RETRY_SECONDS + timeout + 1.0


def test_after_a_minute_it_gives_up_and_then_starts_afresh(
    sink: SteadySink, lease: Lease, clock: Clock
) -> None:
    lease.is_away = True
    sink.report([UPDATE])
    clock.wait(RETRY_SECONDS)
    with pytest.raises(StoreUnavailable):
        sink.report([UPDATE])
    assert sink.report([UPDATE]) == [Verdict.CONTINUE]


def test_a_result_waits_for_redis_under_the_same_pause_and_shows_that_it_is_back(
    sink: SteadySink, lease: Lease, clock: Clock
) -> None:
    outcome = Outcome(Status.SUCCEEDED)
    lease.is_away = True
    assert sink.finish(UPDATE.job, outcome) is None
    assert sink.report([UPDATE]) == [Verdict.CONTINUE]
    lease.is_away = False
    assert sink.finish(UPDATE.job, outcome) is None
    assert lease.calls == 1
    clock.wait(PAUSE_SECONDS)
    assert sink.finish(UPDATE.job, outcome)
    assert not sink.is_away
