"""/v1/files: what is refused and why, and that a refusal leaves nothing behind."""

from __future__ import annotations

import base64
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from http_harness import Api, until
from uploading import assert_refused, blobs, form, part, upload

from jobs.blobs import FileBlobStore
from tests.media_files import clip, picture, sound
from tests.video_spec import VIDEO_SPEC

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


SMALL = picture()
LARGE = SMALL + bytes(15_000)


def _refused_for_room(api: Api, response: Any) -> None:
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert "no room for files" in response.json()["detail"]
    assert int(response.headers["Retry-After"]) >= 1
    assert blobs(api) == []
    assert api.client.get("/v1/files").json()["data"] == []


def _by_data_url(api: Api, data: bytes) -> Any:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    body = {"model": VIDEO_SPEC.id, "input": {"prompt": "x", "first_frame": url}}
    return api.client.post("/v1/jobs", json=body)


@pytest.mark.parametrize("send", [upload, _by_data_url])
def test_while_the_disk_is_short_of_room_files_are_refused_and_jobs_are_not(
    video_api: Api, monkeypatch: pytest.MonkeyPatch, send: Any
) -> None:
    least = video_api.settings.min_free_disk_bytes
    monkeypatch.setattr(FileBlobStore, "free_bytes", lambda _: least - 1)
    _refused_for_room(video_api, send(video_api, SMALL))
    plain = {"model": VIDEO_SPEC.id, "input": {"prompt": "x"}}
    assert video_api.client.post("/v1/jobs", json=plain).status_code == 202
    monkeypatch.setattr(FileBlobStore, "free_bytes", lambda _: least)
    assert send(video_api, SMALL).status_code in (201, 202)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("send", [upload, _by_data_url])
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["written at the end", "written on the way"])
def test_a_disk_that_is_full_in_the_middle_of_a_file_leaves_nothing_of_it(
    video_api: Api, monkeypatch: pytest.MonkeyPatch, send: Any, data: bytes
) -> None:
    new_part = FileBlobStore.new_part

    def full(blobs: FileBlobStore, folder: str) -> tuple[BinaryIO, Path]:
        file, path = new_part(blobs, folder)
        file.close()
        return Path("/dev/full").open("wb"), path

    monkeypatch.setattr(FileBlobStore, "new_part", full)
    _refused_for_room(video_api, send(video_api, data))
