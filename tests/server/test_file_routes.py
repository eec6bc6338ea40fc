"""/v1/files: what is stored, what is refused and why, and that a refusal leaves nothing behind."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from http_harness import Api, serving, until
from redis import Redis

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
    sound,
    turned_picture,
)
from tests.video_spec import VIDEO_SPEC


def upload(api: Api, data: bytes, name: str = "file", **fields: str) -> Any:
    return api.client.post("/v1/files", files={"file": (name, data)}, data=fields)


def stored(api: Api, data: bytes, name: str = "file") -> dict[str, Any]:
    response = upload(api, data, name)
    assert response.status_code == 201, response.text
    found: dict[str, Any] = response.json()
    return found


def blobs(api: Api) -> list[str]:
    """Every file under the blob store, whatever its name."""
    root = api.settings.blob_dir
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def assert_refused(api: Api, response: Any, status: int, words: str, param: str = "file") -> None:
    problem = response.json()
    assert response.status_code == status, problem
    assert response.headers["Content-Type"] == "application/problem+json"
    assert words in problem["detail"]
    assert problem.get("param") == param
    assert blobs(api) == []
    assert api.client.get("/v1/files").json()["data"] == []


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


BROKEN: dict[str, tuple[Any, str]] = {
    "empty": (lambda _: b"", "file is empty"),
    "text renamed": (lambda _: b"Dear diary\n" * 99, "a format that is not accepted"),
    "a playlist": (lambda _: b"#EXTM3U\nfile:///etc/passwd\n", "a format that is not accepted"),
    "a signature alone": (lambda _: picture()[:9], "not a readable png"),
    "corrupt": (lambda path: _noise(clip(path / "a.mp4", 9)), "file"),
    "cut off": (lambda path: clip(path / "a.webm", 32, codec="libvpx")[:-900], "cut off"),
    "picture cut off": (lambda _: picture("PNG")[:-30], "cut off"),
    "without frames": (lambda path: clip(path / "a.mp4", 0), "has no video in it"),
    "sound only": (lambda path: sound(path / "a.mp4"), "has no video in it"),
    "wrong codec": (
        lambda path: clip(path / "a.mkv", 2, codec="mpeg2video"),
        "is coded in mpeg2video; accepted codecs are h264",
    ),
    "too many pixels": (lambda _: picture(size=(200, 60)), "200 x 60 pixels; at most 10000"),
    "far too many pixels": (
        lambda _: picture(size=(300, 300)),
        "far more pixels than are accepted",
    ),
    "too many frames": (
        lambda path: clip(path / "a.mp4", 10_000, size=(16, 16), codec="mpeg4", fps=1000),
        "more than the 40 frames",
    ),
    "too many pixels in all": (
        lambda path: clip(path / "a.mp4", 40, size=(100, 60), fps=50),
        "40 of 100 x 60 are more than the 200000",
    ),
    "too long": (
        lambda path: clip(path / "a.mkv", 2, times=[0, 16 * 60]),
        "longer than the 20 seconds",
    ),
}


def _noise(data: bytes) -> bytes:
    return data[:60] + bytes(byte ^ 0x5A for byte in data[60:])


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_use_is_refused_and_not_kept(
    video_api: Api, tmp_path: Path, name: str
) -> None:
    make, words = BROKEN[name]
    response = upload(video_api, make(tmp_path), "clip.mp4")
    assert_refused(video_api, response, 422, words)
    assert response.json()["code"] == "invalid_input"


def test_a_file_that_is_too_large_is_refused_by_its_declared_length(video_api: Api) -> None:
    response = upload(video_api, bytes(400_000))
    assert_refused(video_api, response, 413, "at most 200000 bytes")


def test_a_file_that_is_too_large_is_refused_while_it_comes(video_api: Api) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        while sent < 64 << 20:
            sent += 65_536
            yield bytes(65_536)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = video_api.client.post("/v1/files", content=chunks(), headers=headers)
    assert_refused(video_api, response, 413, "at most 200000 bytes")
    assert sent < 64 << 20


def test_a_file_of_just_too_many_bytes_is_refused(video_api: Api) -> None:
    response = upload(video_api, bytes(200_001))
    assert_refused(video_api, response, 413, "at most 200000 bytes")


def test_an_upload_that_breaks_off_leaves_nothing(video_api: Api) -> None:
    port = int(video_api.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nbeginning'
        )
        until(lambda: blobs(video_api), "the upload to begin")
    until(lambda: not blobs(video_api), "the upload to be given up")


def form(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end


def part(name: str, value: bytes, extra: str = "") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + value


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        (form(part("purpose", b"mask")), 422, "file", "file is required"),
        (form(part("image", b"x"), part("file", b"x")), 422, "image", "not a known field"),
        (form(part("file", b"x"), part("file", b"x")), 422, "file", "given once"),
        (form(part("purpose", b"a b"), part("file", b"x")), 422, "purpose", "1 to 64 letters"),
        (form(part("purpose", b"x" * 2000)), 422, "purpose", "at most 1024 bytes"),
        (form(part("purpose", b"\xff")), 422, "purpose", "UTF-8"),
        (form(part("file", b"x"), end=b""), 400, None, "before its last boundary"),
        (form(b"X-Y: z\r\n\r\nq"), 400, None, "has no name"),
        (b"nonsense", 400, None, "not a form"),
        (b"", 400, None, "before its last boundary"),
        (form(part("file", b"x", "; a=b\r\nX-Long: " + "y" * 9000)), 400, None, "not a form"),
    ],
)
def test_a_form_that_is_not_as_described_is_refused(
    video_api: Api, body: bytes, status: int, param: Any, words: str
) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = video_api.client.post("/v1/files", content=body, headers=headers)
    assert_refused(video_api, response, status, words, param)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 415),
        ("image/png", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=" + "b" * 99, 400),
    ],
)
def test_a_body_that_is_no_form_is_refused(video_api: Api, content_type: str, status: int) -> None:
    response = video_api.client.post(
        "/v1/files", content=picture(), headers={"Content-Type": content_type}
    )
    assert response.status_code == status
    assert blobs(video_api) == []


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
    slow, answered = slow_animation(8), []

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


def test_a_continued_upload_is_answered_before_it_is_sent(video_api: Api) -> None:
    # Clients that ask first (curl, above a megabyte) hear the refusal without sending the file.
    connection = http.client.HTTPConnection(video_api.url.removeprefix("http://"))
    connection.putrequest("POST", "/v1/files")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", "900000000")
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    connection.close()
