"""/v1/files: what is stored and given out again, and that checking files holds up nobody."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest
from http_harness import Api, serving, until
from redis import Redis
from uploading import blobs, form, part, stored, upload

from config.settings import Settings
from jobs.blobs import FileBlobStore
from jobs.keeper import Keeper
from jobs.media import inspector as inspector_module
from tests.media_files import (
    HEIGHT,
    WIDTH,
    animation,
    clip,
    picture,
    slow_animation,
    turned_picture,
)
from tests.video_spec import VIDEO_SPEC


def test_an_upload_is_described_by_what_is_in_it(video_api: Api, tmp_path: Path) -> None:
    data = clip(tmp_path / "a.mp4", 9)
    response = upload(video_api, data, "walk.mp4", purpose="source")
    file = response.json()
    assert response.status_code == 201
    assert response.headers["Location"] == file["links"]["self"] == f"/v1/files/{file['id']}"
    assert file["object"] == "file"
    assert (file["kind"], file["content_type"]) == ("video", "video/mp4")
    assert (file["width"], file["height"], file["num_frames"]) == (WIDTH, HEIGHT, 9)
    assert (file["fps"], file["duration_seconds"]) == (16.0, 0.5625)
    assert (file["filename"], file["purpose"]) == ("walk.mp4", "source")
    assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert file["created_at"] < file["expires_at"]
    assert video_api.client.get(f"/v1/files/{file['id']}").json() == file
    assert str(video_api.settings.blob_dir) not in response.text


def test_the_bytes_come_back_as_they_were_sent(video_api: Api) -> None:
    data = picture()
    file = stored(video_api, data, "a.png")
    response = video_api.client.get(file["links"]["content"])
    assert response.content == data
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["ETag"] == f'"{file["sha256"]}"'
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert 'filename="a.png"' in response.headers["Content-Disposition"]
    part = video_api.client.get(file["links"]["content"], headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, data[2:6])
    beyond = video_api.client.get(file["links"]["content"], headers={"Range": "bytes=9999999-"})
    assert beyond.status_code == 416
    same = video_api.client.get(
        file["links"]["content"], headers={"If-None-Match": response.headers["ETag"]}
    )
    assert (same.status_code, same.content) == (304, b"")
    head = video_api.client.head(file["links"]["content"])
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(data)))


@pytest.mark.parametrize(
    ("make", "kind", "content_type"),
    [
        (lambda _: picture("JPEG"), "image", "image/jpeg"),
        (lambda _: picture("WEBP"), "image", "image/webp"),
        (lambda _: picture("GIF"), "image", "image/gif"),
        (lambda _: animation("WEBP"), "video", "image/webp"),
        (lambda _: animation("GIF"), "video", "image/gif"),
        (lambda path: clip(path / "a.mov", 3), "video", "video/quicktime"),
        (lambda path: clip(path / "a.webm", 3, codec="libvpx"), "video", "video/webm"),
        (lambda path: clip(path / "a.mkv", 3), "video", "video/x-matroska"),
    ],
)
def test_every_accepted_format_is_told_by_its_content(
    video_api: Api, tmp_path: Path, make: Any, kind: str, content_type: str
) -> None:
    # The name and the declared type say something else.
    file = stored(video_api, make(tmp_path), "notes.txt")
    assert (file["kind"], file["content_type"]) == (kind, content_type)


def test_odd_but_sound_files_are_stored(video_api: Api, tmp_path: Path) -> None:
    assert stored(video_api, picture(size=(1, 1)))["width"] == 1
    turned = stored(video_api, turned_picture(6))
    assert (turned["width"], turned["height"], turned["rotation"]) == (HEIGHT, WIDTH, 270)
    turned = stored(video_api, clip(tmp_path / "a.mp4", 2, rotation=90))
    assert (turned["width"], turned["height"], turned["rotation"]) == (HEIGHT, WIDTH, 90)
    assert stored(video_api, picture(mode="RGBA"))["has_alpha"] is True
    data = clip(tmp_path / "a.webm", 2, codec="libvpx-vp9", pixel_format="yuva420p")
    assert stored(video_api, data)["has_alpha"] is True
    uneven = stored(video_api, clip(tmp_path / "a.mkv", 5, times=[0, 1, 2, 10, 11]))
    assert uneven["num_frames"] == 5
    assert uneven["fps"] == pytest.approx(5 / 0.75, rel=0.02)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd.png", "passwd.png"),
        ("C:\\pictures\\a.png", "a.png"),
        ("Bär \x07.png", "Bär .png"),
        ("x" * 400, "x" * 255),
    ],
)
def test_only_the_plain_name_of_a_file_is_kept(video_api: Api, sent: str, kept: str) -> None:
    body = form(part("file", picture(), f'; filename="{sent}"').replace(b"\\", b"\\\\"))
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = video_api.client.post("/v1/files", content=body, headers=headers)
    assert response.json()["filename"] == kept
    assert video_api.client.get(response.json()["links"]["content"]).status_code == 200


def test_files_are_listed_newest_first_page_by_page(video_api: Api) -> None:
    ids = [stored(video_api, picture(size=(n, n)))["id"] for n in range(1, 6)]
    page = video_api.client.get("/v1/files", params={"limit": 2}).json()
    assert [file["id"] for file in page["data"]] == ids[:2:-1]
    assert page["has_more"] is True
    stored(video_api, picture())
    seen = [file["id"] for file in page["data"]]
    while page["next_cursor"]:
        page = video_api.client.get(
            "/v1/files", params={"limit": 2, "cursor": page["next_cursor"]}
        ).json()
        seen += [file["id"] for file in page["data"]]
    assert seen == ids[::-1]
    bad = video_api.client.get("/v1/files", params={"cursor": "x"})
    assert (bad.status_code, bad.json()["param"]) == (422, "cursor")


def test_a_deleted_file_is_gone(video_api: Api) -> None:
    file = stored(video_api, picture())
    assert video_api.client.delete(f"/v1/files/{file['id']}").status_code == 204
    assert blobs(video_api) == []
    for path in (file["links"]["self"], file["links"]["content"]):
        response = video_api.client.get(path)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert video_api.client.delete(f"/v1/files/{file['id']}").status_code == 404
    assert video_api.client.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize("file_id", ["x", "file_" + "0" * 32, "file_..", "file_" + "0" * 99])
def test_what_was_never_uploaded_is_not_found(video_api: Api, file_id: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        response = video_api.client.request(method, f"/v1/files/{file_id}{path}")
        assert response.status_code == 404
        assert response.headers["Content-Type"] == "application/problem+json"


def test_an_expired_file_is_gone_and_its_bytes_are_swept(
    video_api: Api, redis_client: Redis
) -> None:
    file = stored(video_api, picture())
    kept = stored(video_api, picture("JPEG"))
    redis_client.pexpire(f"denoised:file:{file['id']}", 1)
    until(
        lambda: video_api.client.get(f"/v1/files/{file['id']}").status_code == 404,
        "the file to expire",
    )
    assert [f["id"] for f in video_api.client.get("/v1/files").json()["data"]] == [kept["id"]]
    settings: Settings = video_api.settings
    store = FileBlobStore(settings.blob_dir)
    keeper = Keeper(redis_client, settings, store, sweep_seconds=0)
    assert keeper.run_once().orphans == 0
    for found in store.uploads():
        os.utime(found.path, (1, 1))
    assert keeper.run_once().orphans == 1
    assert [found.file_id for found in store.uploads()] == [kept["id"]]


def test_requests_are_served_while_a_file_is_decoded(video_api: Api, tmp_path: Path) -> None:
    data = clip(tmp_path / "a.mp4", 40)
    answered = []
    sending = threading.Thread(target=lambda: answered.append(upload(video_api, data)))
    sending.start()
    while sending.is_alive():
        assert video_api.client.get("/healthz").status_code == 200
    sending.join()
    assert answered[0].status_code == 201


def test_a_small_picture_is_answered_while_slow_files_are_checked(
    redis_client: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector_module, "HELPERS", 1)
    slow, answered = slow_animation(24), []

    def send(api: Api, data: bytes) -> None:
        with httpx2.Client(base_url=api.url, timeout=60, trust_env=False) as client:
            sent = client.post("/v1/files", files={"file": data})
            answered.append((len(data), sent.status_code))

    with serving(settings, (VIDEO_SPEC,)) as api:
        # With its helper running: starting it would take most of the time.
        send(api, picture())
        monkeypatch.setattr(inspector_module, "QUICK_SECONDS", 0.05)
        threads = [threading.Thread(target=send, args=(api, slow)) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: api.services.inspector._waiting == 3, "the slow files to arrive")
        send(api, picture())
        assert answered == [(len(picture()), 201)] * 2
        for thread in threads:
            thread.join()
    assert answered[2:] == [(len(slow), 201)] * 3


def test_files_that_come_while_too_many_are_checked_are_told_when_to_come_again(
    video_api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector_module, "MAX_WAITING", 0)
    data = base64.b64encode(picture()).decode()
    job = {"prompt": "x", "first_frame": f"data:image/png;base64,{data}"}
    for response in (
        upload(video_api, picture()),
        video_api.client.post("/v1/jobs", json={"model": VIDEO_SPEC.id, "input": job}),
    ):
        assert response.status_code == 503
        assert response.json()["code"] == "overloaded"
        assert int(response.headers["Retry-After"]) >= 1
        assert blobs(video_api) == []
    assert video_api.client.get("/v1/jobs").json()["data"] == []
