"""GET /v1/jobs/{id}/outputs/{n}: bytes, conditions, ranges, and when there is nothing to fetch."""

from __future__ import annotations

import hashlib

import pytest
from http_harness import THUMBNAIL, Api, FakeWorker

from jobs.blobs import FileBlobStore, output_key
from jobs.types import Outcome, Output, Status
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


def test_files_of_a_cancelled_job_are_not_shown(api: Api, worker: FakeWorker) -> None:
    """Its worker may have stored some before it heard of the cancel."""
    job_id = api.submit()["id"]
    job = worker.claim()
    key = output_key(job.id, job.execution_id, 0, "png")
    FileBlobStore(api.settings.blob_dir).put(key, b"a picture")
    api.client.post(f"/v1/jobs/{job_id}/cancel")
    running = api.client.get(f"/v1/jobs/{job_id}/outputs/0")
    assert running.status_code == 409
    worker.acknowledge_cancel(job)
    assert api.job(job_id)["outputs"] == []
    for index in (0, 1):
        assert api.client.get(f"/v1/jobs/{job_id}/outputs/{index}").status_code == 404


def test_a_cancel_after_the_end_takes_no_output_away(api: Api, url: str) -> None:
    before = api.client.get(url).content
    answer = api.client.post(f"/v1/jobs/{url.split('/')[3]}/cancel")
    assert answer.json()["status"] == "succeeded"
    assert api.client.get(url).content == before


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


def test_a_thumbnail_comes_with_type_tag_and_name_of_its_own(api: Api, url: str) -> None:
    whole = api.client.get(url)
    small = api.client.get(url, params={"variant": "thumbnail"})
    assert (small.status_code, small.content) == (200, THUMBNAIL)
    assert small.headers["Content-Type"] == "image/jpeg"
    assert small.headers["ETag"] != whole.headers["ETag"]
    job_id = url.split("/")[3]
    name = f'inline; filename="{job_id}-0-thumbnail.jpg"'
    assert small.headers["Content-Disposition"] == name
    condition = {"If-None-Match": small.headers["ETag"]}
    again = api.client.get(url, params={"variant": "thumbnail"}, headers=condition)
    assert (again.status_code, again.content) == (304, b"")
    assert api.client.get(url, headers=condition).status_code == 200
    part = api.client.get(url, params={"variant": "thumbnail"}, headers={"Range": "bytes=0-2"})
    assert (part.status_code, part.content) == (206, THUMBNAIL[:3])


def test_a_variant_that_the_output_lacks_is_not_found_by_name(api: Api, url: str) -> None:
    response = api.client.get(url, params={"variant": "frames"})
    assert response.status_code == 404
    assert response.json()["param"] == "variant"
    assert "its variants: thumbnail" in response.json()["detail"]


@pytest.mark.parametrize("name", ["", "poster", "../0", "thumbnail.jpg"])
def test_an_unknown_variant_is_refused(api: Api, url: str, name: str) -> None:
    response = api.client.get(url, params={"variant": name})
    assert response.status_code == 422
    assert "variant" in response.text


def test_an_output_lists_its_variants_and_a_picture_has_no_length(api: Api, url: str) -> None:
    [output] = api.job(url.split("/")[3])["outputs"]
    assert output["variants"] == ["thumbnail"]
    for name in ("codec", "num_frames", "fps", "duration_seconds"):
        assert output[name] is None


def test_a_clip_tells_its_length_and_is_served_as_video(api: Api, worker: FakeWorker) -> None:
    job_id = api.submit()["id"]
    job = worker.claim()
    key = f"jobs/{job.id}/{job.execution_id}/0.mp4"
    worker.blobs.put(key, CONTENT)
    clip = Output(
        key=key,
        content_type="video/mp4",
        width=64,
        height=64,
        bytes=len(CONTENT),
        sha256="0" * 64,
        seed=1,
        codec="h264",
        num_frames=9,
        fps=16.0,
        duration_seconds=0.5625,
    )
    assert worker.leases.finish(job, Outcome(Status.SUCCEEDED, outputs=(clip,)))
    [output] = api.job(job_id)["outputs"]
    assert (output["codec"], output["num_frames"]) == ("h264", 9)
    assert (output["fps"], output["duration_seconds"]) == (16.0, 0.5625)
    response = api.client.get(output["url"])
    assert response.headers["Content-Type"] == "video/mp4"
    assert response.headers["Content-Disposition"].endswith('-0.mp4"')


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
