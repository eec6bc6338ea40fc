"""Files sent to /v1/files, and what is left of them there."""

from __future__ import annotations

from typing import Any

from http_harness import Api


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


def form(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end


def part(name: str, value: bytes, extra: str = "") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + value
