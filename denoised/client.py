"""A small blocking client of the native HTTP API.

    from denoised.client import Client

    with Client("http://127.0.0.1:8000") as client:
        job = client.submit("sana-demo", {"prompt": "a red circle on a blue background"})
        for event in client.watch(job.id):
            print(event.type, event.data.get("progress"))
        picture = client.download(job.id, 0)

Requests go out, typed records come back. Watching a job survives lost connections and restarts of
the server: the stream is taken up again after the last event seen.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
from pydantic import BaseModel

from denoised.api_errors import ApiError, ServerUnreachable, refusal
from denoised.errors import ClientError
from jobs.types import EventType, Priority, Status
from server.schemas import Estimate, Job, JobList, Model, ModelList, Readiness, StoredFile

__all__ = ["ApiError", "Client", "ClientError", "JobEvent", "ServerUnreachable"]

DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY_VARIABLE = "DENOISED_API_KEY"

# The server sends a comment at least every 15 s, so this much silence means a dead connection.
STREAM_SILENCE_SECONDS = 45.0
UPLOAD_SECONDS = 300.0
FIRST_RETRY_SECONDS = 0.2
LONGEST_RETRY_SECONDS = 5.0

_Record = TypeVar("_Record", bound=BaseModel)


@dataclass(frozen=True)
class JobEvent:
    """One entry of a job's event stream; `id` resumes the stream after it."""

    id: str
    type: EventType
    data: dict[str, Any]


class Client:
    """Talks to one server. Use as a context manager, or call `close`.

    `timeout` is in seconds and holds for every request except event streams. `api_key` is sent with
    every request; without it, that in the environment variable DENOISED_API_KEY, if any. Every
    method raises ServerUnreachable or ApiError.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, api_key: str | None = None, timeout: float = 30.0
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout
        parsed = httpx2.URL(self.url)
        api_key = api_key or os.environ.get(API_KEY_VARIABLE)
        self._http = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout,
            # Loading certificate authorities takes longer than a request; plain HTTP needs none.
            verify=parsed.scheme == "https",
            # A proxy named in the environment must not see requests to this machine itself.
            trust_env=parsed.host not in ("127.0.0.1", "localhost", "::1"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(
        self,
        model: str,
        input: Mapping[str, Any],
        *,
        priority: Priority | str = Priority.STANDARD,
        deterministic: bool = False,
        deadline_seconds: float | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        wait_seconds: int = 0,
    ) -> Job:
        """Queue a job and return its record.

        By `deadline_seconds` from now it is done or has failed with `deadline_exceeded`.
        `idempotency_key` makes a repeated submission return the first one's job. With
        `wait_seconds` (0..60) the server answers early if the job ends within that time.
        """
        headers = {}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        if wait_seconds:
            headers["Prefer"] = f"wait={wait_seconds}"
        body: dict[str, Any] = {
            "model": model,
            "input": dict(input),
            "priority": str(priority),
            "deterministic": deterministic,
            "metadata": dict(metadata or {}),
        }
        if deadline_seconds is not None:
            body["deadline_seconds"] = deadline_seconds
        response = self._request(
            "POST",
            "/v1/jobs",
            json=body,
            headers=headers,
            timeout=self._timeout + wait_seconds,
        )
        return _parse(Job, response)

    def estimate(self, model: str, input: Mapping[str, Any]) -> Estimate:
        """What a job of this input would take, by what has been measured; no job is made."""
        body = {"model": model, "input": dict(input)}
        return _parse(Estimate, self._request("POST", "/v1/estimate", json=body))

    def get(self, job_id: str) -> Job:
        """The job's record."""
        return _parse(Job, self._request("GET", f"/v1/jobs/{job_id}"))

    def list(
        self,
        *,
        status: Status | str | None = None,
        model: str | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> JobList:
        """One page of jobs, newest first; `cursor` is the `next_cursor` of the page before."""
        filters = {"status": status, "model": model, "limit": limit, "cursor": cursor}
        params = {name: str(value) for name, value in filters.items() if value is not None}
        return _parse(JobList, self._request("GET", "/v1/jobs", params=params))

    def cancel(self, job_id: str) -> Job:
        """Ask for a job to be cancelled; a running one ends at its next step. Idempotent."""
        return _parse(Job, self._request("POST", f"/v1/jobs/{job_id}/cancel"))

    def delete(self, job_id: str) -> None:
        """Remove a finished job with its outputs."""
        self._request("DELETE", f"/v1/jobs/{job_id}")

    def download(self, job_id: str, index: int = 0, *, variant: str | None = None) -> bytes:
        """The bytes of one output, or of a smaller form of it, one of its `variants`."""
        params = {} if variant is None else {"variant": variant}
        return self._request("GET", f"/v1/jobs/{job_id}/outputs/{index}", params=params).content

    def upload(self, path: Path) -> StoredFile:
        """Store a picture or clip on the server; its id is what inputs name it by.

        The server decodes all of it before it answers. Raises OSError when it cannot be read.
        """
        with path.open("rb") as file:
            response = self._request(
                "POST",
                "/v1/files",
                files={"file": (path.name, file)},
                timeout=max(self._timeout, UPLOAD_SECONDS),
            )
        return _parse(StoredFile, response)

    def models(self) -> ModelList:
        """What the server can run, with residency."""
        return _parse(ModelList, self._request("GET", "/v1/models"))

    def model(self, model_id: str) -> Model:
        """One model: limits, defaults, input schema, residency."""
        return _parse(Model, self._request("GET", f"/v1/models/{model_id}"))

    def readiness(self) -> Readiness:
        """Whether a job submitted now would make progress, with the reasons if not."""
        response = self._send("GET", "/readyz")
        if response.status_code not in (200, 503):
            raise refusal(response)
        return _parse(Readiness, response)

    def watch(
        self, job_id: str, *, after: str | None = None, patience_seconds: float = 60.0
    ) -> Iterator[JobEvent]:
        """The job's events from the first one, or after the event id `after`, to the terminal one.

        A broken stream is resumed after the last event seen, without gap or repetition. Ends
        early only if the job is over and the server no longer keeps its events. Raises
        ServerUnreachable after `patience_seconds` without any contact.
        """
        last_contact = time.monotonic()
        retry = FIRST_RETRY_SECONDS
        over = False
        while True:
            try:
                for event in self._events_once(job_id, after):
                    after, retry = event.id, FIRST_RETRY_SECONDS
                    yield event
                    if event.type.is_terminal:
                        return
                    last_contact = time.monotonic()
                # A stream that ends in good order belongs to a server that stops, or to a job
                # that was over before this stream began and whose events have expired.
                if over:
                    return
                over = self.get(job_id).status.is_terminal
                last_contact = time.monotonic()
            except ServerUnreachable:
                if time.monotonic() - last_contact > patience_seconds:
                    raise
            except ApiError as error:
                if error.status != 503 or time.monotonic() - last_contact > patience_seconds:
                    raise
            if not over:
                time.sleep(retry)
                retry = min(2 * retry, LONGEST_RETRY_SECONDS)

    def _events_once(self, job_id: str, after: str | None) -> Iterator[JobEvent]:
        headers = {"Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = after
        timeout = httpx2.Timeout(self._timeout, read=STREAM_SILENCE_SECONDS)
        try:
            with self._http.stream(
                "GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=timeout
            ) as response:
                if response.is_error:
                    response.read()
                    raise refusal(response)
                for message in httpx2.EventSource(response):
                    # Hints such as `retry:` arrive as messages without an event of ours.
                    if message.event in _EVENT_NAMES:
                        yield JobEvent(
                            message.id, EventType(message.event), json.loads(message.data)
                        )
        except (httpx2.SSEError, json.JSONDecodeError) as error:
            raise ClientError(f"{self.url} sent a malformed event stream: {error}") from error
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    def _request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        response = self._send(method, path, **options)
        if response.is_error:
            raise refusal(response)
        return response

    def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx2.TransportError) -> ServerUnreachable:
        if isinstance(error, httpx2.ConnectError):
            return ServerUnreachable(f"no server answers at {self.url}")
        reason = str(error) or type(error).__name__
        return ServerUnreachable(f"lost the connection to {self.url}: {reason}")


_EVENT_NAMES = frozenset(str(name) for name in EventType)


def _parse(kind: type[_Record], response: httpx2.Response) -> _Record:
    try:
        return kind.model_validate_json(response.content)
    except ValueError:
        raise ClientError(
            f"{response.request.url} did not answer as a denoised server does"
        ) from None
