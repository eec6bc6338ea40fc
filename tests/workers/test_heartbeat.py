"""The heartbeat thread with a client that remembers: verdicts, hangs, a Redis that is away."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from engine_harness import claimed
from pydantic import ValidationError

from config.settings import Settings
from jobs.errors import StoreUnavailable
from jobs.types import ClaimedJob, Verdict
from jobs.worker_registry import WorkerInfo
from workers.heartbeat import Heartbeat, Pulse

PATIENCE = 20.0
INFO = WorkerInfo(name="w", pid=1, host="h", device="cpu", dtype="float32")


class Client:
    """Counts beats and announcements; `trouble` is raised by the first beats."""

    def __init__(self, verdict: Verdict, trouble: list[Exception]) -> None:
        self.verdict = verdict
        self.trouble = trouble
        self.announced = threading.Event()
        self.beats = 0

    def beat(self, jobs: Sequence[ClaimedJob]) -> list[Verdict]:
        self.beats += 1
        if self.trouble:
            raise self.trouble.pop()
        return [self.verdict] * len(jobs)

    def announce(self, info: WorkerInfo) -> None:
        self.announced.set()


class Scene:
    """A heartbeat over one held job."""

    def __init__(
        self, *, verdict: Verdict = Verdict.CONTINUE, trouble: Sequence[Exception] = ()
    ) -> None:
        self.settings = Settings(heartbeat_seconds=0.01, step_timeout_seconds=0.1)
        self.client = Client(verdict, list(trouble))
        self.pulse = Pulse()
        self.job = claimed()
        self.posted: list[tuple[ClaimedJob, Verdict]] = []
        self.got_verdict = threading.Event()
        self.hung = threading.Event()
        self.beats_at_answers: list[int] = []
        self.heartbeat = Heartbeat(
            self.client,
            self.settings,
            self.pulse,
            held=lambda: [self.job],
            post=self.post,
            describe=lambda: INFO,
            note_answer=lambda: self.beats_at_answers.append(self.client.beats),
            on_hang=lambda jobs: self.hung.set(),
        )

    def post(self, job: ClaimedJob, verdict: Verdict) -> None:
        self.posted.append((job, verdict))
        self.got_verdict.set()


@pytest.mark.parametrize("verdict", [Verdict.CANCEL, Verdict.LEASE_LOST])
def test_verdicts_reach_the_engine(verdict: Verdict) -> None:
    scene = Scene(verdict=verdict)
    scene.heartbeat.start()
    assert scene.got_verdict.wait(PATIENCE)
    scene.heartbeat.stop()
    assert scene.posted[0] == (scene.job, verdict)
    assert not scene.heartbeat.is_alive()


def test_it_stops_beating_and_gives_up_when_the_main_thread_is_silent() -> None:
    scene = Scene()
    scene.heartbeat.start()
    assert scene.hung.wait(PATIENCE)
    scene.heartbeat.join(PATIENCE)
    beats = scene.client.beats
    assert beats >= 1
    assert scene.posted == []
    assert not scene.heartbeat.is_alive()


def test_a_main_thread_that_waits_for_redis_is_not_hung() -> None:
    pulse = Pulse()
    with pulse.waiting():
        pulse._last -= 1000.0
        assert pulse.silent_seconds == 0.0
    assert pulse.silent_seconds < 1000.0


@pytest.mark.parametrize("trouble", [StoreUnavailable("away"), RuntimeError("unexpected")])
def test_it_outlives_trouble_with_redis(trouble: Exception) -> None:
    scene = Scene(trouble=[trouble, trouble])
    scene.settings = Settings(heartbeat_seconds=0.01)
    scene.heartbeat._settings = scene.settings
    scene.heartbeat.start()
    assert scene.client.announced.wait(PATIENCE)
    scene.heartbeat.stop()
    assert scene.client.beats >= 3
    assert scene.beats_at_answers[0] == 3, "only what Redis has answered counts"


def test_a_heartbeat_too_slow_for_its_lease_is_refused() -> None:
    assert Settings(lease_seconds=3.0).heartbeat_seconds == 1.5
    with pytest.raises(ValidationError, match=r"half of lease_seconds \(1\)"):
        Settings(lease_seconds=1.0)
