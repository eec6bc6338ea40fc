"""/healthz and /readyz: alive is not ready, busy is not dead, silent is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from http_harness import SPEC, Api, serving, worker_info

from config.settings import Settings
from jobs import keys
from jobs.worker_registry import WORKER_TTL_SECONDS, announce, retire
from server.readiness import reasons_against

NOW = datetime.now(UTC)
PATIENCE = timedelta(seconds=60)
LONG_AGO = NOW - timedelta(seconds=61)


def codes(*workers: Any) -> list[str]:
    found = reasons_against(workers, now=NOW, patience=PATIENCE, lease_seconds=6)
    return [reason.code for reason in found]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"state": "idle"}, []),
        ({"state": "idle", "last_progress_at": LONG_AGO}, []),
        ({"state": "busy", "last_progress_at": NOW}, []),
        ({"state": "busy", "last_progress_at": LONG_AGO}, ["no_progress"]),
        ({"state": "starting", "models": ()}, ["no_model"]),
        ({"state": "starting"}, ["no_model"]),
        ({"state": "idle", "silent_seconds": 6}, []),
        ({"state": "idle", "silent_seconds": 7}, ["no_worker"]),
        ({"state": "idle", "models": (), "model_errors": {"m": "bad"}}, ["no_model"]),
        ({"state": "draining"}, ["no_worker"]),
    ],
)
def test_one_worker_is_judged_by_what_it_gets_done(
    changes: dict[str, Any], expected: list[str]
) -> None:
    assert codes(worker_info(**changes)) == expected


def test_one_good_worker_is_enough() -> None:
    stuck = worker_info(state="busy", last_progress_at=LONG_AGO)
    assert codes(stuck, worker_info()) == []
    assert codes() == ["no_worker"]


def test_ready_follows_the_workers(api: Api, redis_client: Any) -> None:
    before = api.client.get("/readyz")
    assert before.status_code == 503
    assert [reason["code"] for reason in before.json()["reasons"]] == ["no_worker"]

    announce(redis_client, worker_info())
    ready = api.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready", "reasons": [], "workers": 1, "models": [SPEC.id]}

    retire(redis_client, worker_info().name)
    assert api.client.get("/readyz").status_code == 503


def test_a_worker_that_died_unheard_does_not_keep_the_server_ready(
    settings: Settings, redis_client: Any
) -> None:
    with serving(settings.model_copy(update={"lease_seconds": 6.0})) as api:
        announce(redis_client, worker_info())
        assert api.client.get("/readyz").status_code == 200
        redis_client.expire(keys.worker(worker_info().name), WORKER_TTL_SECONDS - 9)
        answer = api.client.get("/readyz")
        assert answer.status_code == 503
        [reason] = answer.json()["reasons"]
        assert reason["code"] == "no_worker"
        assert "was last heard of 9 s ago" in reason["message"]


def test_without_redis_the_server_lives_but_is_not_ready(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with serving(nowhere) as api:
        assert api.client.get("/healthz").json() == {"status": "ok"}
        answer = api.client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["reasons"][0]["code"] == "store_unavailable"


def test_a_worker_that_could_load_nothing_says_why(api: Api, redis_client: Any) -> None:
    announce(redis_client, worker_info(models=(), model_errors={SPEC.id: "tensor x is missing"}))
    [reason] = api.client.get("/readyz").json()["reasons"]
    assert reason["code"] == "no_model"
    assert "tensor x is missing" in reason["message"]
