"""POST /v1/jobs: what is accepted, what is refused and how, idempotency, waiting for the end."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import pytest
from http_harness import BODY, SPEC, Api, FakeWorker, until

from server.waiting import preferred_wait

JSON = {"Content-Type": "application/json"}


def queued(api: Api) -> int:
    return len(api.client.get("/v1/jobs").json()["data"])


def test_an_accepted_job_is_answered_with_its_place_and_a_fully_resolved_input(api: Api) -> None:
    response = api.client.post("/v1/jobs", json=BODY)
    job = response.json()
    assert response.status_code == 202
    assert response.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert int(response.headers["Retry-After"]) >= 1
    assert job["status"] == "queued"
    assert job["queue"] == {
        "position": 0,
        "estimated_start_at": None,
        "estimated_finish_at": None,
    }
    assert job["progress"] == {"step": 0, "total_steps": 4, "percent": 0.0, "eta_seconds": None}
    assert job["input"]["prompt"] == "a red circle"
    assert job["input"]["width"] == 64
    assert job["input"]["sampler"] == "dpmpp"
    assert isinstance(job["input"]["seed"], int)
    assert job["created_at"].endswith("Z")
    assert job["links"]["events"] == f"/v1/jobs/{job['id']}/events"
    assert api.job(job["id"]) == job


def test_the_answered_input_can_be_submitted_again_as_it_is(api: Api) -> None:
    first = api.submit()
    assert api.submit(input=first["input"])["input"] == first["input"]


def test_the_json_suffix_media_type_is_accepted(api: Api) -> None:
    headers = {"Content-Type": "application/vnd.denoised+json; charset=UTF-8"}
    response = api.client.post("/v1/jobs", content=json.dumps(BODY), headers=headers)
    assert response.status_code == 202


def given(**input_changes: Any) -> dict[str, Any]:
    return BODY | {"input": BODY["input"] | input_changes}


INVALID_FIELDS = {
    "unknown model": (BODY | {"model": "no-such"}, "model", "test-model"),
    "model missing": ({"input": {"prompt": "x"}}, "model", "required"),
    "model of wrong type": (BODY | {"model": 7}, "model", "string"),
    "input missing": ({"model": SPEC.id}, "input", "required"),
    "input of wrong type": (BODY | {"input": "a cat"}, "input", "dictionary"),
    "unknown top field": (BODY | {"promt": "x"}, "promt", "not a known field"),
    "unknown input field": (given(widht=64), "input.widht", ""),
    "empty prompt": (given(prompt=""), "input.prompt", ""),
    "blank prompt": (given(prompt=" \n"), "input.prompt", ""),
    "endless prompt": (given(prompt="x" * 100_000), "input.prompt", "1000"),
    "width off the grid": (given(width=65), "input.width", "32"),
    "width too large": (given(width=160), "input.width", "128"),
    "width as text": (given(width="64"), "input.width", ""),
    "no steps": (given(num_inference_steps=0), "input.num_inference_steps", "50"),
    "guidance too strong": (given(guidance_scale=21), "input.guidance_scale", "20"),
    "guidance not a number": (
        given(guidance_scale=float("nan")),
        "input.guidance_scale",
        "1 to 20",
    ),
    "guidance infinite": (given(guidance_scale=float("-inf")), "input.guidance_scale", "1 to 20"),
    "guidance beyond floats": (given(guidance_scale=10**400), "input.guidance_scale", "1 to 20"),
    "width not whole": (given(width=64.0), "input.width", "got 64.0"),
    "width beyond reason": (given(width=10**399), "input.width", "32 to 128"),
    "metadata not a number": (
        BODY | {"metadata": {"n": float("nan")}},
        "metadata.n",
        "string",
    ),
    "seed negative": (given(seed=-1), "input.seed", ""),
    "seed beyond 64 bits": (given(seed=2**70), "input.seed", "0 to 4294967295"),
    "unknown sampler": (given(sampler="magic"), "input.sampler", "euler"),
    "unknown priority": (BODY | {"priority": "asap"}, "priority", "interactive"),
    "deterministic as text": (BODY | {"deterministic": "yes"}, "deterministic", "boolean"),
    "metadata not text": (BODY | {"metadata": {"n": 1}}, "metadata.n", "string"),
    "metadata too long": (BODY | {"metadata": {"n": "x" * 513}}, "metadata.n", "512"),
    "metadata too many": (BODY | {"metadata": {str(n): "" for n in range(17)}}, "metadata", "16"),
    "NUL in the prompt": (given(prompt="a\0b"), "input.prompt", "NUL"),
    "NUL in a name": (given(**{"a\0b": 1}), "input", "NUL"),
    "lone surrogate": (given(prompt="\ud800"), "input.prompt", "surrogate"),
    "lone surrogate in a name": (given(**{"\udfff": 1}), "input", "surrogate"),
}


@pytest.mark.parametrize("case", INVALID_FIELDS)
def test_a_bad_field_is_refused_by_name_and_nothing_is_queued(api: Api, case: str) -> None:
    body, param, hint = INVALID_FIELDS[case]
    response = api.client.post("/v1/jobs", content=json.dumps(body), headers=JSON)
    problem = response.json()
    assert 400 <= response.status_code < 500
    assert response.headers["Content-Type"] == "application/problem+json"
    assert problem["status"] == response.status_code
    assert problem["code"] in ("invalid_input", "unsupported_model", "malformed_body")
    assert problem.get("param") == param
    assert hint in problem["detail"]
    assert len(response.content) < 2000
    assert queued(api) == 0


def test_an_answer_stays_short_however_many_fields_are_bad(api: Api) -> None:
    for body in (
        dict.fromkeys(map(str, range(5000)), 1),
        given(**dict.fromkeys(map(str, range(5000)))),
    ):
        response = api.client.post("/v1/jobs", json=body)
        assert response.status_code == 422
        assert len(response.json()["errors"]) == 32
        assert len(response.content) < 20_000


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 401, "-" + "9" * 100_000])
@pytest.mark.parametrize(
    ("field", "allowed"),
    [("guidance_scale", "a number from 1 to 20"), ("seed", "a whole number from 0 to 4294967295")],
)
def test_a_number_beyond_all_bounds_is_told_the_range_of_its_field(
    api: Api, number: str, field: str, allowed: str
) -> None:
    content = f'{{"model": "{SPEC.id}", "input": {{"prompt": "x", "{field}": {number}}}}}'
    response = api.client.post("/v1/jobs", content=content, headers=JSON)
    problem = response.json()
    assert response.status_code == 422
    assert problem["param"] == f"input.{field}"
    assert allowed in problem["detail"]
    assert len(response.content) < 2000
    assert queued(api) == 0


def test_several_bad_fields_are_all_named(api: Api) -> None:
    response = api.client.post("/v1/jobs", json=given(width=7, height="x", prompt=""))
    errors = response.json()["errors"]
    assert {error["param"] for error in errors} == {"input.width", "input.height", "input.prompt"}
    assert all(error["message"] for error in errors)


MALFORMED = {
    "empty": (b"", JSON, 400),
    "not JSON": (b"{", JSON, 400),
    "trailing comma": (b'{"model": "test-model",}', JSON, 400),
    "a list": (b"[]", JSON, 400),
    "a number": (b"1", JSON, 400),
    "integer of 100,000 digits": (b'{"seed": ' + b"9" * 100_000 + b"}", JSON, 422),
    "integer of 100 digits": (b'{"seed": ' + b"9" * 100 + b"}", JSON, 422),
    "deep lists": (b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", JSON, 400),
    "deep objects": (b'{"a":' * 50 + b"1" + b"}" * 50, JSON, 400),
    "invalid UTF-8": (b'{"model": "\xff"}', JSON, 400),
    "UTF-16": (json.dumps(BODY).encode("utf-16"), JSON, 400),
    "byte order mark": (b"\xef\xbb\xbf{}", JSON, 400),
    "no content type": (b"{}", {}, 415),
    "plain text": (b"{}", {"Content-Type": "text/plain"}, 415),
    "latin-1 JSON": (b"{}", {"Content-Type": "application/json; charset=latin-1"}, 415),
    "a form": (b"model=x", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    "compressed": (b"{}", JSON | {"Content-Encoding": "gzip"}, 415),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_body_is_a_problem_and_nothing_is_queued(api: Api, case: str) -> None:
    content, headers, status = MALFORMED[case]
    response = api.client.post("/v1/jobs", content=content, headers=headers)
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["detail"]
    assert queued(api) == 0


def test_curl_users_are_told_about_the_content_type(api: Api) -> None:
    response = api.client.post("/v1/jobs", data={"model": "x"})
    assert "curl --json" in response.json()["detail"]


def test_an_oversized_body_is_refused_by_its_declared_length(api: Api) -> None:
    with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2]))) as connection:
        connection.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99999999999\r\n\r\n{"
        )
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer
    assert queued(api) == 0


def test_an_oversized_chunked_body_is_refused_before_its_end(api: Api) -> None:
    sent = 0

    def chunks() -> Any:
        nonlocal sent
        yield b'{"model": "'
        while sent < 64 << 20:
            sent += 65_536
            yield b"x" * 65_536

    response = api.client.post("/v1/jobs", content=chunks(), headers=JSON)
    assert response.status_code == 413
    assert sent < 64 << 20
    assert queued(api) == 0


def test_a_full_queue_is_an_overload_that_says_when_to_come_back(
    settings: Any, redis_server: Any
) -> None:
    from http_harness import serving

    with serving(settings.model_copy(update={"max_queued_jobs": 1})) as api:
        api.submit()
        response = api.client.post("/v1/jobs", json=BODY)
        assert response.status_code == 503
        assert response.json()["code"] == "overloaded"
        assert int(response.headers["Retry-After"]) >= 1
        assert queued(api) == 1


def test_the_same_idempotency_key_gives_the_same_job(api: Api) -> None:
    headers = {"Idempotency-Key": "order-17"}
    first = api.client.post("/v1/jobs", json=BODY, headers=headers)
    reordered = dict(reversed(list(BODY.items())))
    second = api.client.post("/v1/jobs", json=reordered, headers=headers)
    assert second.status_code == 202
    assert second.json() == first.json()
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert queued(api) == 1


def test_repeating_a_submission_whose_job_has_ended_gives_its_result(
    api: Api, worker: FakeWorker
) -> None:
    headers = {"Idempotency-Key": "order-17"}
    api.client.post("/v1/jobs", json=BODY, headers=headers)
    worker.run_one()
    again = api.client.post("/v1/jobs", json=BODY, headers=headers)
    assert (again.status_code, again.json()["status"]) == (200, "succeeded")


def test_an_idempotency_key_with_another_body_is_a_conflict(api: Api) -> None:
    headers = {"Idempotency-Key": "order-17"}
    api.client.post("/v1/jobs", json=BODY, headers=headers)
    response = api.client.post("/v1/jobs", json=given(width=128), headers=headers)
    assert response.status_code == 422
    assert response.json()["code"] == "idempotency_conflict"
    assert queued(api) == 1


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "\xe9"])
def test_an_unfit_idempotency_key_is_refused(api: Api, key: str) -> None:
    response = api.client.post(
        "/v1/jobs", json=BODY, headers={"Idempotency-Key": key.encode("latin-1")}
    )
    assert response.status_code == 422
    assert response.json()["param"] == "Idempotency-Key"
    assert queued(api) == 0


def test_waiting_answers_200_as_soon_as_the_job_has_ended(api: Api, worker: FakeWorker) -> None:
    running = threading.Thread(target=worker.run_one)
    running.start()
    response = api.client.post("/v1/jobs", json=BODY, headers={"Prefer": "respond-async, wait=9"})
    running.join()
    assert response.status_code == 200
    assert response.headers["Preference-Applied"] == "wait=9"
    assert response.json()["status"] == "succeeded"
    assert len(response.json()["outputs"]) == 1


def test_a_wait_that_runs_out_answers_202(api: Api) -> None:
    response = api.client.post("/v1/jobs", json=BODY, headers={"Prefer": "wait=1"})
    assert response.status_code == 202
    assert response.json()["status"] == "queued"


def test_a_waiter_that_leaves_is_not_waited_for(api: Api) -> None:
    body = json.dumps(BODY).encode()
    with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2]))) as connection:
        connection.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Prefer: wait=60\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        until(lambda: api.watchers == 1, "the wait to begin")
    until(lambda: api.watchers == 0, "the wait to be given up")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], 0),
        (["wait=10"], 10),
        (["respond-async, wait=10"], 10),
        (["respond-async", "WAIT = 5"], 5),
        (['wait="7"; foo=1'], 7),
        (["wait=600"], 60),
        (["wait=0"], 0),
        (["wait=-1"], 0),
        (["wait=soon"], 0),
        (["wait"], 0),
    ],
)
def test_prefer_headers_are_read_as_rfc_7240_has_them(headers: list[str], seconds: int) -> None:
    assert preferred_wait(headers) == seconds
