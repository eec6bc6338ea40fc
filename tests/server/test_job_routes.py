"""Showing, listing, cancelling and deleting jobs."""

from __future__ import annotations

from datetime import datetime

import pytest
from http_harness import OTHER_SPEC, Api, FakeWorker

from jobs.types import Verdict


def test_a_running_job_shows_its_stage_attempt_and_progress(api: Api, worker: FakeWorker) -> None:
    job_id = api.submit()["id"]
    worker.step(worker.claim(), 1)
    job = api.job(job_id)
    assert (job["status"], job["stage"], job["attempt"]) == ("running", "denoising", 1)
    assert job["progress"] == {"step": 1, "total_steps": 4, "percent": 25.0, "eta_seconds": 1.5}
    assert job["queue"] is None
    assert datetime.fromisoformat(job["started_at"]) >= datetime.fromisoformat(job["created_at"])
    assert job["finished_at"] is None


def test_a_succeeded_job_shows_outputs_usage_and_end(api: Api, worker: FakeWorker) -> None:
    job_id = api.submit(metadata={"order": "17"})["id"]
    worker.run_one()
    job = api.job(job_id)
    assert (job["status"], job["stage"], job["error"]) == ("succeeded", None, None)
    assert job["finished_at"].endswith("Z")
    assert job["usage"] == {"gpu_seconds": 0.5, "steps": 4, "resumed_steps": 0}
    assert job["metadata"] == {"order": "17"}
    [output] = job["outputs"]
    assert set(output) == {
        *("index", "url", "content_type", "width", "height", "bytes", "sha256", "seed"),
        *("codec", "num_frames", "fps", "duration_seconds", "variants"),
    }


def test_a_failed_job_shows_why(api: Api, worker: FakeWorker) -> None:
    job_id = api.submit()["id"]
    worker.fail(worker.claim())
    job = api.job(job_id)
    assert job["status"] == "failed"
    assert job["error"] == {
        "code": "out_of_memory",
        "message": "too large for this device",
        "param": None,
        "retryable": False,
    }


def test_queued_jobs_know_their_place(api: Api) -> None:
    ids = [api.submit()["id"] for _ in range(3)]
    assert [api.job(job_id)["queue"]["position"] for job_id in ids] == [0, 1, 2]
    urgent = api.submit(priority="interactive")["id"]
    assert api.job(urgent)["queue"]["position"] == 0
    assert api.job(ids[0])["queue"]["position"] == 1


@pytest.mark.parametrize(
    "job_id", ["job_unknown", "x" * 300, "a:dependents", "%00", "%FF", "..", "*", "j%C3%B6b"]
)
def test_an_unknown_id_is_not_found_whatever_it_looks_like(api: Api, job_id: str) -> None:
    for method, suffix in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/events"),
        ("GET", "/outputs/0"),
    ]:
        response = api.client.request(method, f"{api.url}/v1/jobs/{job_id}{suffix}")
        assert response.status_code in (404, 405) if job_id == ".." else response.status_code == 404
        assert response.headers["Content-Type"] == "application/problem+json"


def test_paging_visits_every_job_once_although_new_ones_arrive(api: Api) -> None:
    ids = [api.submit()["id"] for _ in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        params = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = api.client.get("/v1/jobs", params=params).json()
        seen += [job["id"] for job in page["data"]]
        cursor = page["next_cursor"]
        assert page["has_more"] is (cursor is not None)
        if cursor is None:
            break
        api.submit()
    assert seen == ids[::-1]


def test_the_list_can_be_filtered(api: Api, worker: FakeWorker) -> None:
    done = api.submit()["id"]
    worker.run_one()
    other = api.submit(model=OTHER_SPEC.id)["id"]
    waiting = api.submit()["id"]

    def listed(**params: str) -> list[str]:
        page = api.client.get("/v1/jobs", params=params).json()
        return [job["id"] for job in page["data"]]

    assert listed(status="succeeded") == [done]
    assert listed(status="queued") == [waiting, other]
    assert listed(model=OTHER_SPEC.id) == [other]
    assert listed(model=OTHER_SPEC.id, status="succeeded") == []


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"status": "done"}, "status"),
        ({"state": "queued"}, "state"),
        ({"cursor": "no cursor"}, "cursor"),
        ({"cursor": "\0"}, "cursor"),
        ({"cursor": "9" * 300}, "cursor"),
    ],
)
def test_a_bad_filter_is_refused_by_name(api: Api, params: dict[str, str], param: str) -> None:
    response = api.client.get("/v1/jobs", params=params)
    assert response.status_code == 422
    assert response.json()["param"] == param
    assert response.json()["code"] == "invalid_input"


def test_cancelling_a_queued_job_ends_it_at_once_and_may_be_repeated(api: Api) -> None:
    job_id = api.submit()["id"]
    answers = [api.client.post(f"/v1/jobs/{job_id}/cancel") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["status"] == "cancelled"
    assert answers[0].json()["error"]["code"] == "cancelled"


def test_cancelling_a_running_job_is_accepted_until_its_worker_has_stopped(
    api: Api, worker: FakeWorker
) -> None:
    job_id = api.submit()["id"]
    claimed = worker.claim()
    for _ in range(2):
        answer = api.client.post(f"/v1/jobs/{job_id}/cancel")
        assert answer.status_code == 202
        assert (answer.json()["status"], answer.json()["cancel_requested"]) == ("running", True)
    assert worker.step(claimed, 1) is Verdict.CANCEL
    worker.acknowledge_cancel(claimed)
    answer = api.client.post(f"/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


def test_cancelling_an_ended_job_leaves_it_as_it_is(api: Api, worker: FakeWorker) -> None:
    job_id = api.submit()["id"]
    worker.run_one()
    before = api.job(job_id)
    answer = api.client.post(f"/v1/jobs/{job_id}/cancel")
    assert answer.status_code == 200
    assert answer.json() == before


def test_deleting_an_ended_job_removes_record_and_files(api: Api, worker: FakeWorker) -> None:
    job_id = api.submit()["id"]
    worker.run_one()
    assert list(api.settings.blob_dir.rglob("*.png"))
    response = api.client.delete(f"/v1/jobs/{job_id}")
    assert (response.status_code, response.content) == (204, b"")
    assert not list(api.settings.blob_dir.rglob("*.png"))
    assert api.client.get(f"/v1/jobs/{job_id}").status_code == 404
    assert api.client.get("/v1/jobs").json()["data"] == []
    assert api.client.delete(f"/v1/jobs/{job_id}").status_code == 404


def test_an_active_job_is_not_deleted_but_told_to_be_cancelled_first(
    api: Api, worker: FakeWorker
) -> None:
    job_id = api.submit()["id"]
    queued = api.client.delete(f"/v1/jobs/{job_id}")
    worker.claim()
    running = api.client.delete(f"/v1/jobs/{job_id}")
    for response in (queued, running):
        assert response.status_code == 409
        assert response.json()["code"] == "job_active"
        assert "cancel" in response.json()["detail"]
    assert api.job(job_id)["status"] == "running"
