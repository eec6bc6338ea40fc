"""Jobs made of files: what a job owns, what data URLs become, and that refusals leave nothing."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
from http_harness import Api, FakeWorker
from redis import Redis

from config.settings import Settings
from jobs.blobs import FileBlobStore, input_key
from jobs.keeper import Keeper
from jobs.lease import LeaseClient
from tests.media_files import clip, picture, sound
from tests.video_spec import VIDEO_SPEC


def stored(api: Api, data: bytes) -> str:
    response = api.client.post("/v1/files", files={"file": ("file", data)})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def submit(api: Api, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    body = {"model": VIDEO_SPEC.id, "input": {"prompt": "x", **fields}}
    return api.client.post("/v1/jobs", json=body, headers=headers)


def accepted(api: Api, **fields: Any) -> dict[str, Any]:
    response = submit(api, **fields)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def data_url(data: bytes, content_type: str = "image/png") -> str:
    return f"data:{content_type};base64,{base64.b64encode(data).decode()}"


def blobs(api: Api) -> list[str]:
    root = api.settings.blob_dir
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def file_ids(api: Api) -> list[str]:
    return [file["id"] for file in api.client.get("/v1/files").json()["data"]]


def job_blobs(api: Api) -> list[str]:
    return [name for name in blobs(api) if name.startswith("jobs/")]


@pytest.fixture
def video_worker(video_api: Api) -> Any:
    assert video_api.settings.redis_url is not None
    client = LeaseClient(video_api.settings.redis_url, video_api.settings, "worker")
    yield client
    client.close()


def test_a_job_owns_a_copy_of_each_file_under_its_fields_name(
    video_api: Api, video_worker: LeaseClient, tmp_path: Path
) -> None:
    first, second, mask = picture(), picture("JPEG"), picture("WEBP")
    source = clip(tmp_path / "a.mp4", 9)
    ids = {data: stored(video_api, data) for data in (first, second, mask, source)}
    fields = {
        "video": ids[source],
        "mask": ids[mask],
        "reference_images": [ids[second], ids[first]],
    }
    job = accepted(video_api, **fields)
    assert {name: job["input"][name] for name in fields} == fields
    assert (job["input"]["num_frames"], job["input"]["width"]) == (9, 96)
    for file_id in ids.values():
        assert video_api.client.delete(f"/v1/files/{file_id}").status_code == 204
    [claimed] = video_worker.claim([VIDEO_SPEC.id], 1)
    store = FileBlobStore(video_api.settings.blob_dir)
    assert claimed.input == job["input"]
    assert store.read(input_key(claimed.id, "video")) == source
    assert store.read(input_key(claimed.id, "mask")) == mask
    assert store.read(input_key(claimed.id, "reference_images", 0)) == second
    assert store.read(input_key(claimed.id, "reference_images", 1)) == first


def test_the_answered_input_can_be_submitted_again_as_it_is(video_api: Api) -> None:
    job = accepted(video_api, first_frame=stored(video_api, picture()))
    assert accepted(video_api, **job["input"])["input"] == job["input"]


def test_a_deleted_job_takes_its_files_with_it(video_api: Api) -> None:
    job = accepted(video_api, first_frame=stored(video_api, picture()))
    assert job_blobs(video_api) == [f"jobs/{job['id']}/inputs/first_frame"]
    video_api.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert video_api.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert job_blobs(video_api) == []
    assert len(file_ids(video_api)) == 1


def test_a_data_url_becomes_a_file_with_the_id_of_its_content(video_api: Api) -> None:
    url = data_url(picture())
    job = accepted(video_api, first_frame=url, reference_images=[url])
    [file_id] = file_ids(video_api)
    assert job["input"]["first_frame"] == file_id
    assert job["input"]["reference_images"] == [file_id]
    assert len(job_blobs(video_api)) == 2
    # The same bytes again, however they are labelled, are the same file.
    again = accepted(video_api, first_frame=data_url(picture(), "image/x-odd"))
    assert again["input"]["first_frame"] == file_id
    assert file_ids(video_api) == [file_id]
    content = video_api.client.get(f"/v1/files/{file_id}/content").content
    assert content == picture()


def test_a_clip_may_come_as_a_data_url(video_api: Api, tmp_path: Path) -> None:
    url = data_url(clip(tmp_path / "a.mp4", 5), "video/mp4")
    assert accepted(video_api, control_video=url)["input"]["num_frames"] == 5


@pytest.mark.parametrize("size", [(1, 1), (7, 90), (96, 64)])
def test_sources_and_masks_of_any_size_are_taken(
    video_api: Api, tmp_path: Path, size: tuple[int, int]
) -> None:
    source = stored(video_api, clip(tmp_path / "a.mp4", 1))
    made = accepted(video_api, video=source, mask=stored(video_api, picture(size=size)))
    assert (made["input"]["width"], made["input"]["num_frames"]) == (96, 1)
    made = accepted(video_api, first_frame=stored(video_api, picture(size=size)))
    assert made["input"]["width"] % 16 == made["input"]["height"] % 16 == 0


BAD_URLS: dict[str, tuple[Any, str]] = {
    "no comma": ("data:image/png;base64", "must be a data URL in base64"),
    "percent-encoded": ("data:image/png,%89PNG", "must be a data URL in base64"),
    "not base64": ("data:image/png;base64,***", "is not valid base64"),
    "empty": ("data:image/png;base64,", "is empty"),
    "text": (data_url(b"Dear diary\n" * 9), "a format that is not accepted"),
    "corrupt": (data_url(picture()[:-30]), "cut off"),
    "too large": (data_url(bytes(20_001)), "upload the file"),
    "a web address": ("https://example.org/a.png", "not supported yet: upload the file"),
    "another scheme": ("file:///etc/passwd", "the id of an uploaded file"),
    "no such file": ("file_" + "0" * 32, "there is no file"),
}


@pytest.mark.parametrize("name", BAD_URLS)
@pytest.mark.parametrize("field", ["first_frame", "reference_images"])
def test_what_names_no_usable_file_is_refused_by_its_field(
    video_api: Api, field: str, name: str
) -> None:
    value, words = BAD_URLS[name]
    param = "input.first_frame"
    if field == "reference_images":
        value, param = [data_url(picture()), value], "input.reference_images.1"
    response = submit(video_api, **{field: value})
    problem = response.json()
    assert (response.status_code, problem["param"]) == (422, param)
    assert words in problem["detail"]
    assert len(problem["detail"]) < 400
    assert (blobs(video_api), file_ids(video_api)) == ([], [])
    assert video_api.client.get("/v1/jobs").json()["data"] == []


def test_files_that_came_with_a_refused_input_are_not_kept(video_api: Api, tmp_path: Path) -> None:
    url = data_url(picture())
    source = data_url(clip(tmp_path / "a.mp4", 5))
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("input.prompt", {"prompt": "", "first_frame": url}),
        ("input.mask", {"mask": url}),
        ("input.video", {"video": url, "mask": url}),
        ("input.control_video", {"control_video": url}),
        ("input.first_frame", {"first_frame": source}),
        ("input.reference_images", {"reference_images": [url] * 3}),
        ("input.last_clip", {"last_clip": source, "num_frames": 1}),
        ("input.last_clip", {"last_clip": data_url(sound(tmp_path / "b.mp4"))}),
    ]
    for param, fields in wrong:
        response = submit(video_api, **fields)
        assert (response.status_code, response.json()["param"]) == (422, param)
        assert (blobs(video_api), file_ids(video_api)) == ([], [])


def test_a_full_queue_keeps_nothing_of_what_it_refuses(video_api: Api) -> None:
    for _ in range(3):
        accepted(video_api)
    response = submit(video_api, first_frame=data_url(picture()))
    assert response.status_code == 503
    assert (blobs(video_api), file_ids(video_api)) == ([], [])


def test_a_repetition_finds_its_job_though_the_file_has_gone(video_api: Api) -> None:
    headers = {"Idempotency-Key": "once"}
    file_id = stored(video_api, picture())
    job = submit(video_api, headers, first_frame=file_id).json()
    video_api.client.delete(f"/v1/files/{file_id}")
    again = submit(video_api, headers, first_frame=file_id)
    assert (again.status_code, again.json()["id"]) == (202, job["id"])
    assert again.headers["Idempotency-Replayed"] == "true"
    assert job_blobs(video_api) == [f"jobs/{job['id']}/inputs/first_frame"]
    other = submit(video_api, headers, first_frame=file_id, seed=1)
    assert other.json()["code"] == "idempotency_conflict"


def test_bodies_with_data_urls_may_be_larger_and_no_larger_than_that(video_api: Api) -> None:
    settings = video_api.settings
    room = settings.max_body_bytes + settings.max_data_url_bytes * 4 // 3
    assert submit(video_api, first_frame="data:" + "x" * (room - 1000)).status_code == 422
    assert submit(video_api, first_frame="data:" + "x" * (room + 1000)).status_code == 413


def test_a_model_of_pictures_takes_no_files_and_no_larger_bodies(
    api: Api, worker: FakeWorker
) -> None:
    job = api.submit()
    assert worker.claim().id == job["id"]
    assert not (api.settings.blob_dir / "jobs").exists()
    body = {"model": "test-model", "input": {"prompt": "x" * (api.settings.max_body_bytes)}}
    assert api.client.post("/v1/jobs", json=body).status_code == 413


def test_the_keeper_leaves_the_files_of_known_jobs_and_sweeps_those_of_others(
    video_api: Api, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: Settings = video_api.settings
    store = FileBlobStore(settings.blob_dir)
    job = accepted(video_api, first_frame=stored(video_api, picture()))
    ended = accepted(video_api, first_frame=file_ids(video_api)[0])
    video_api.client.post(f"/v1/jobs/{ended['id']}/cancel")
    # As a crash between linking and queueing leaves it.
    store.link(
        next(name for name in blobs(video_api) if name.startswith("files/")),
        input_key("job_never_queued", "first_frame"),
    )
    keeper = Keeper(redis_client, settings, store, orphan_grace_seconds=0, sweep_seconds=0)
    # The keeper's own clock may be wrong: the files tell the time.
    monkeypatch.setattr("time.time", lambda: 1e11)
    keeper.run_once()
    monkeypatch.undo()
    assert len(job_blobs(video_api)) == 3
    for folder in (settings.blob_dir / "jobs").glob("*/inputs"):
        os.utime(folder, (1, 1))
    assert keeper.run_once().orphans == 1
    assert sorted(job_blobs(video_api)) == sorted(
        f"jobs/{known['id']}/inputs/first_frame" for known in (job, ended)
    )
