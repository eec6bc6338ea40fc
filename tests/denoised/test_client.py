"""The client against a real HTTP server that refuses, breaks off and forgets at will."""

from __future__ import annotations

import json
import socket

import pytest

import denoised.client
from denoised.client import ApiError, Client, ClientError, ServerUnreachable
from tests.denoised.scripted_server import Reply, scripted_server

SSE = {"Content-Type": "text/event-stream"}
PROBLEM = {"Content-Type": "application/problem+json"}

EVENTS = [
    ("1-0", "job.queued"),
    ("2-0", "job.started"),
    ("3-0", "job.progress"),
    ("3-1", "job.progress"),
    ("4-0", "job.succeeded"),
]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(denoised.client, "FIRST_RETRY_SECONDS", 0.001)


def wire(events):
    parts = ["retry: 1000\n\n: a comment\n\n"]
    for event_id, name in events:
        data = json.dumps({"type": name, "job_id": "j"})
        parts.append(f"event: {name}\nid: {event_id}\ndata: {data}\n\n")
    return "".join(parts).encode()


def job_json(status):
    return json.dumps(
        {
            "id": "j", "object": "job", "model": "m", "status": status, "stage": None,
            "attempt": 1, "priority": "standard", "deterministic": False,
            "cancel_requested": False, "created_at": "2026-01-01T00:00:00.000Z",
            "started_at": None, "finished_at": None, "queue": None,
            "progress": {"step": 0, "total_steps": 20, "percent": 0.0, "eta_seconds": None},
            "input": {"prompt": "p"},
            "outputs": [], "error": None,
            "usage": {"gpu_seconds": 0.0, "steps": 0, "resumed_steps": 0},
            "links": {"self": "", "events": "", "cancel": "", "outputs": []}, "metadata": {},
        }
    ).encode()  # fmt: skip


def after(headers):
    ids = [event_id for event_id, _ in EVENTS]
    last = headers.get("last-event-id")
    return EVENTS[ids.index(last) + 1 :] if last else EVENTS


@pytest.mark.parametrize("cut_after", range(len(wire(EVENTS)) // 7))
def test_a_stream_cut_anywhere_is_resumed_without_gap_or_repetition(cut_after):
    seen_first = []

    def answer(method, path, headers):
        body = wire(after(headers))
        if not seen_first:
            seen_first.append(True)
            return Reply(body=body[: cut_after * 7], headers=SSE, cut=True)
        return Reply(body=body, headers=SSE)

    with scripted_server(answer) as server, Client(server.url) as client:
        events = list(client.watch("j"))
    assert [(event.id, str(event.type)) for event in events] == EVENTS
    assert all(event.data["job_id"] == "j" for event in events)


def test_watching_can_begin_after_a_known_event():
    with (
        scripted_server(lambda *r: Reply(body=wire(after(r[2])), headers=SSE)) as server,
        Client(server.url) as client,
    ):
        assert [event.id for event in client.watch("j", after="3-0")] == ["3-1", "4-0"]


def test_a_stopping_server_is_waited_for():
    answers = iter([Reply(body=wire(EVENTS[:2]), headers=SSE), Reply(503, b"{}"), None])

    def answer(method, path, headers):
        if not path.endswith("/events"):
            return Reply(body=job_json("running"), headers={"Content-Type": "application/json"})
        return next(answers) or Reply(body=wire(after(headers)), headers=SSE)

    with scripted_server(answer) as server, Client(server.url) as client:
        assert [event.id for event in client.watch("j")] == [event_id for event_id, _ in EVENTS]


def test_watching_ends_when_the_job_is_over_and_its_events_are_gone():
    def answer(method, path, headers):
        if path.endswith("/events"):
            return Reply(body=b": nothing left\n\n", headers=SSE)
        return Reply(body=job_json("succeeded"), headers={"Content-Type": "application/json"})

    with scripted_server(answer) as server, Client(server.url) as client:
        assert list(client.watch("j")) == []


def test_watching_gives_up_when_nobody_answers():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        Client(f"http://127.0.0.1:{port}") as client,
        pytest.raises(ServerUnreachable, match=f"no server answers at http://127.0.0.1:{port}"),
    ):
        list(client.watch("j", patience_seconds=0.05))


def test_a_refusal_carries_code_field_and_waiting_time():
    body = {"code": "overloaded", "detail": "The queue is full.", "param": None}
    headers = PROBLEM | {"Retry-After": "7"}
    with (
        scripted_server(lambda *_: Reply(503, json.dumps(body).encode(), headers)) as server,
        Client(server.url) as client,
        pytest.raises(ApiError, match="The queue is full") as caught,
    ):
        client.submit("m", {"prompt": "p"})
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (
        503,
        "overloaded",
        7.0,
    )


def test_every_field_at_fault_is_named():
    body = {
        "code": "invalid_input",
        "detail": "input.width: too small (and 1 more, see errors)",
        "param": "input.width",
        "errors": [
            {"param": "input.width", "message": "must lie in 64..512"},
            {"param": "input.seed", "message": "must be a whole number"},
        ],
    }
    with (
        scripted_server(lambda *_: Reply(422, json.dumps(body).encode(), PROBLEM)) as server,
        Client(server.url) as client,
        pytest.raises(ApiError) as caught,
    ):
        client.submit("m", {"prompt": "p"})
    assert str(caught.value) == (
        "input.width: must lie in 64..512; input.seed: must be a whole number"
    )


def test_a_foreign_server_is_recognised():
    html = Reply(body=b"<html>hello</html>", headers={"Content-Type": "text/html"})
    with scripted_server(lambda *_: html) as server, Client(server.url) as client:
        with pytest.raises(ClientError, match="did not answer as a denoised server"):
            client.models()
        with pytest.raises(ClientError, match="malformed event stream"):
            list(client.watch("j"))


def test_a_submission_sends_its_idempotency_key_and_its_wish_to_wait():
    reply = Reply(202, job_json("queued"), {"Content-Type": "application/json"})
    with scripted_server(lambda *_: reply) as server, Client(server.url) as client:
        job = client.submit("m", {"prompt": "p"}, idempotency_key="k", wait_seconds=5)
        assert job.status == "queued"
        [(method, path, headers)] = server.requests
    assert (method, path) == ("POST", "/v1/jobs")
    assert headers["idempotency-key"] == "k"
    assert headers["prefer"] == "wait=5"
