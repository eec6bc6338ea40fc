"""GET /v1/jobs/{id}/outputs/{n}: bytes, conditions, ranges, and when there is nothing to fetch."""

from __future__ import annotations

import hashlib

import pytest
from http_harness import Api, FakeWorker

from server.routes.outputs import is_byte_range, matches

CONTENT = bytes(range(256)) * 400


@pytest.fixture
def url(api: Api, worker: FakeWorker) -> str:
    """Where the only output of a succeeded job is."""
    job_id = api.submit()["id"]
    worker.run_one(CONTENT)
    [output] = api.job(job_id)["outputs"]
    return str(output["url"])


def test_the_bytes_come_with_type_tag_and_name(api: Api, url: str) -> None:
    response = api.client.get(url)
    assert response.status_code == 200
    assert response.content == CONTENT
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["ETag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    job_id = url.split("/")[3]
    assert response.headers["Content-Disposition"] == f'inline; filename="{job_id}-0.png"'


def test_head_gives_the_size_without_the_bytes(api: Api, url: str) -> None:
    response = api.client.head(url)
    assert response.status_code == 200
    assert response.headers["Content-Length"] == str(len(CONTENT))
    assert response.content == b""


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-99", slice(0, 100)),
        ("bytes=100-", slice(100, None)),
        ("bytes=-50", slice(-50, None)),
        ("bytes=102000-999999", slice(102_000, None)),
        ("bytes=0-0", slice(0, 1)),
    ],
)
def test_a_range_gives_that_part(api: Api, url: str, asked: str, part: slice) -> None:
    response = api.client.get(url, headers={"Range": asked})
    start, stop, _ = part.indices(len(CONTENT))
    assert response.status_code == 206
    assert response.content == CONTENT[part]
    assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"


@pytest.mark.parametrize("asked", ["bytes=102400-", "bytes=999999-9999999", "bytes=-0"])
def test_a_range_outside_the_file_is_a_problem(api: Api, url: str, asked: str) -> None:
    response = api.client.get(url, headers={"Range": asked})
    assert response.status_code == 416
    assert response.headers["Content-Range"] == f"bytes */{len(CONTENT)}"
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["code"] == "range_not_satisfiable"


@pytest.mark.parametrize(
    "asked", ["lines=1-2", "bytes", "bytes=", "bytes=9-1", "bytes=a-b", "bytes=1", "=", ""]
)
def test_a_range_without_sense_is_ignored(api: Api, url: str, asked: str) -> None:
    response = api.client.get(url, headers={"Range": asked})
    assert response.status_code == 200
    assert response.content == CONTENT


def test_a_range_of_another_version_gives_the_whole_file(api: Api, url: str) -> None:
    stale = api.client.get(url, headers={"Range": "bytes=0-9", "If-Range": '"old"'})
    assert (stale.status_code, stale.content) == (200, CONTENT)
    tag = stale.headers["ETag"]
    fresh = api.client.get(url, headers={"Range": "bytes=0-9", "If-Range": tag})
    assert (fresh.status_code, fresh.content) == (206, CONTENT[:10])


def test_a_client_that_has_the_bytes_is_not_sent_them_again(api: Api, url: str) -> None:
    tag = api.client.get(url).headers["ETag"]
    for condition in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        response = api.client.get(url, headers={"If-None-Match": condition})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["ETag"] == tag
    assert api.client.get(url, headers={"If-None-Match": '"x"'}).status_code == 200


def test_outputs_of_an_unfinished_job_are_a_conflict(api: Api, worker: FakeWorker) -> None:
    job_id = api.submit()["id"]
    queued = api.client.get(f"/v1/jobs/{job_id}/outputs/0")
    worker.claim()
    running = api.client.get(f"/v1/jobs/{job_id}/outputs/0")
    for response in (queued, running):
        assert response.status_code == 409
        assert response.json()["code"] == "job_not_finished"


def test_a_cancelled_job_has_no_outputs(api: Api) -> None:
    job_id = api.submit()["id"]
    api.client.post(f"/v1/jobs/{job_id}/cancel")
    response = api.client.get(f"/v1/jobs/{job_id}/outputs/0")
    assert response.status_code == 404
    assert "cancelled" in response.json()["detail"]


def test_an_output_number_beyond_the_last_is_not_found(api: Api, url: str) -> None:
    assert api.client.get(url[:-1] + "1").status_code == 404
    for bad in ("-1", "x", "99999999999999999999", "1.5"):
        response = api.client.get(url[:-1] + bad)
        assert response.status_code in (404, 422)
        assert response.headers["Content-Type"] == "application/problem+json"


def test_a_file_that_is_gone_is_410(api: Api, worker: FakeWorker, url: str) -> None:
    [output] = api.job(url.split("/")[3])["outputs"]
    for file in api.settings.blob_dir.rglob("*.png"):
        file.unlink()
    response = api.client.get(output["url"])
    assert response.status_code == 410
    assert response.json()["code"] == "result_expired"


def test_every_output_of_a_job_has_its_own_url_and_seed(api: Api, worker: FakeWorker) -> None:
    job = api.submit(input={"prompt": "x", "num_images": 3, "seed": 5})
    worker.run_one()
    outputs = api.job(job["id"])["outputs"]
    assert [output["seed"] for output in outputs] == [5, 6, 7]
    assert len({output["url"] for output in outputs}) == 3
    assert api.job(job["id"])["links"]["outputs"] == [output["url"] for output in outputs]


@pytest.mark.parametrize(
    ("header", "usable"),
    [
        ("bytes=0-1", True),
        ("BYTES=0-", True),
        ("bytes=0-1, 5-6", True),
        ("bytes=-5", True),
        ("bytes=5-4", False),
        ("bytes=-", False),
        ("items=0-1", False),
    ],
)
def test_byte_ranges_are_told_from_nonsense(header: str, usable: bool) -> None:
    assert is_byte_range(header) is usable


def test_tags_are_compared_weakly() -> None:
    assert matches('"a", W/"b"', '"b"')
    assert not matches("", '"b"')
    assert not matches("b", '"b"')
