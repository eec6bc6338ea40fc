"""`denoised run` for clips: files go up first, the request names their ids, the clip comes down."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from denoised.cli import app
from denoised.clip_options import option_of, parse_boxes, parse_outpaint
from denoised.errors import CommandError
from server import examples
from tests.denoised.scripted_server import Reply, scripted_server

SSE = {"Content-Type": "text/event-stream"}
CONTENT = b"an mp4, for all the command knows"


def job(status, **fields):
    base = {
        "id": "job_1", "object": "job", "model": "clips", "status": status, "stage": None,
        "attempt": 1, "priority": "interactive", "deterministic": False,
        "cancel_requested": False, "created_at": "2026-01-01T00:00:00.000Z",
        "started_at": None, "finished_at": None, "queue": None,
        "progress": {"step": 4, "total_steps": 4, "percent": 100.0, "eta_seconds": None},
        "input": {
            "prompt": "p", "output_format": "mp4", "num_frames": 9, "mask": None,
            "first_frame": "file_0", "reference_images": [], "outpaint": {"left": 0.0, "top": 0.0},
        },
        "outputs": [{
            "index": 0, "url": "/v1/jobs/job_1/outputs/0", "content_type": "video/mp4",
            "width": 64, "height": 64, "bytes": len(CONTENT), "sha256": "0", "seed": 7,
            "codec": "h264", "num_frames": 9, "fps": 16.0, "duration_seconds": 0.5625,
            "variants": ["thumbnail", "frames"],
        }],
        "error": None, "usage": {"gpu_seconds": 0.0, "steps": 0, "resumed_steps": 0},
        "links": {"self": "", "events": "", "cancel": "", "outputs": []}, "metadata": {},
    }  # fmt: skip
    return Reply(body=json.dumps(base | fields).encode())


def model():
    return {
        "id": "clips", "object": "model", "family": "wan-vace", "task": "video", "description": "",
        "limits": {}, "defaults": {}, "samplers": [],
        "input_schema": {"properties": {"output_format": {"enum": ["mp4", "webm"]}}},
        "residency": {"state": "resident", "mode": "packed", "workers": 1, "error": None},
    }  # fmt: skip


def problem(status, code, detail, **fields):
    body = {"title": "", "status": status, "code": code, "detail": detail} | fields
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/problem+json"})


class Script:
    """A server of one clip model; `refuse` answers a path with a problem instead."""

    def __init__(self, **refuse):
        self.refuse = refuse
        self.uploads = 0

    def __call__(self, method, path, headers):
        if path == "/v1/models":
            return Reply(body=json.dumps({"object": "list", "data": [model()]}).encode())
        if path == "/v1/models/clips":
            return Reply(body=json.dumps(model()).encode())
        if path == "/v1/files":
            if "upload" in self.refuse:
                return self.refuse["upload"]
            self.uploads += 1
            stored = examples.FILE | {"id": f"file_{self.uploads - 1}"}
            return Reply(201, json.dumps(stored).encode())
        if path == "/v1/jobs":
            return self.refuse.get("submit") or job("queued", outputs=[])
        if path.endswith("/events"):
            data = json.dumps({"type": "job.succeeded", "job_id": "job_1"})
            event = f"event: job.succeeded\nid: 1-0\ndata: {data}\n\n"
            return Reply(body=event.encode(), headers=SSE)
        if path.endswith("/outputs/0"):
            return Reply(body=CONTENT)
        return job("succeeded")


def invoke(server, *arguments):
    result = CliRunner().invoke(app, [*map(str, arguments), "--url", server.url])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        if not isinstance(result.exception, CommandError):
            raise result.exception
        return result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_files_are_uploaded_and_the_request_names_their_ids(tmp_path):
    media = {}
    for name in ("first", "last", "video", "mask", "control", "ref-a", "ref-b"):
        media[name] = tmp_path / f"{name}.bin"
        media[name].write_bytes(name.encode())
    target = tmp_path / "new folder" / "clip.mp4"
    with scripted_server(Script()) as server:
        output = invoke(
            server,
            *("run", "clips", "a red circle", "-o", target, "--seed", 7),
            *("--image", media["first"], "--last-frame", media["last"]),
            *("--video", media["video"], "--mask", media["mask"], "--outpaint", "0.5,0,0,0.25"),
            *("--control-video", media["control"], "--control", "grey"),
            *("--reference", media["ref-a"], "--reference", media["ref-b"]),
            *("--frames", 13, "--fps", 8, "--flow-shift", 3),
        )
    assert target.read_bytes() == CONTENT
    assert f"{target}  (64x64, 9 frames at 16 fps, h264, seed 7, job job_1)" in output
    sent = [body for (_, path, _), body in zip(server.requests, server.bodies, strict=True)
            if path == "/v1/files"]  # fmt: skip
    names = [re.search(rb'filename="([^"]+)"', body)[1].decode() for body in sent]
    [submitted] = [
        json.loads(body)["input"]
        for (_, path, _), body in zip(server.requests, server.bodies, strict=True)
        if path == "/v1/jobs"
    ]
    by_id = {f"file_{n}": name.removesuffix(".bin") for n, name in enumerate(names)}
    fields = ("first_frame", "last_frame", "video", "mask", "control_video")
    assert [by_id[submitted[field]] for field in fields] == [
        "first", "last", "video", "mask", "control",
    ]  # fmt: skip
    assert [by_id[file] for file in submitted["reference_images"]] == ["ref-a", "ref-b"]
    for name, body in zip(names, sent, strict=True):
        assert name.removesuffix(".bin").encode() in body.split(b"\r\n\r\n", 1)[1]
    assert submitted["outpaint"] == {"left": 0.5, "right": 0.0, "top": 0.0, "bottom": 0.25}
    assert (submitted["control"], submitted["output_format"]) == ("grey", "mp4")
    assert (submitted["num_frames"], submitted["fps"], submitted["flow_shift"]) == (13, 8, 3)


def test_boxes_ask_for_a_layout(tmp_path):
    with scripted_server(Script()) as server:
        invoke(
            server,
            *("run", "clips", "p", "-o", tmp_path / "a.webm"),
            *("--box", "0,0,.5,.5:.5,.5,1,1", "--box", "0,0,1,1"),
        )
    [body] = [json.loads(body) for body in server.bodies if b'"input"' in body]
    assert body["input"]["control"] == "layout"
    assert body["input"]["output_format"] == "webm"
    assert body["input"]["layout"] == [
        {"start": [0, 0, 0.5, 0.5], "end": [0.5, 0.5, 1, 1]},
        {"start": [0, 0, 1, 1], "end": [0, 0, 1, 1]},
    ]


@pytest.mark.parametrize("options", [(), ("--deadline", 90)])
def test_a_deadline_goes_with_the_request(tmp_path, options):
    with scripted_server(Script()) as server:
        invoke(server, "run", "clips", "p", "-o", tmp_path / "a.mp4", *options)
    [body] = [json.loads(body) for body in server.bodies if b'"input"' in body]
    assert body.get("deadline_seconds") == (90 if options else None)


def test_without_media_options_nothing_of_clips_is_sent(tmp_path):
    with scripted_server(Script()) as server:
        invoke(server, "run", "clips", "p", "-o", tmp_path / "a.mp4")
    [body] = [json.loads(body) for body in server.bodies if b'"input"' in body]
    assert body["input"] == {"prompt": "p", "output_format": "mp4"}


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--mask", "--mask"),
        ("--image", "--image/--first-frame"),
        ("--first-frame", "--image/--first-frame"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_its_option_before_anything_is_sent(
    tmp_path, option, named
):
    with scripted_server(Script()) as server:
        error = invoke(server, "run", "clips", "p", option, tmp_path / "missing.png")
    assert error.exit_code == 2
    assert str(error).startswith(f"{named}: cannot read ")
    assert "missing.png" in str(error)
    assert server.requests == []


def test_an_upload_that_the_server_refuses_names_option_and_file(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_text("text")
    reply = problem(422, "invalid_input", "file is of a format that is not accepted", param="file")
    with scripted_server(Script(upload=reply)) as server:
        error = invoke(server, "run", "clips", "p", "--video", path)
    assert str(error).startswith(f"--video: {path}: ")
    assert "not accepted" in str(error)


@pytest.mark.parametrize(
    ("param", "option"),
    [
        ("input.num_frames", "--frames"),
        ("input.reference_images.1", "--reference"),
        ("input.mask", "--mask"),
        ("input.flow_shift", "--flow-shift"),
        ("input.num_inference_steps", "--steps"),
        ("input.prompt", "PROMPT"),
        ("input.output_format", "--format"),
    ],
)
def test_a_refused_field_is_told_by_its_option(tmp_path, param, option):
    reply = problem(422, "invalid_input", f"{param} must be something else", param=param)
    with scripted_server(Script(submit=reply)) as server:
        output = ("-o", tmp_path / "a.mp4", "--format", "mp4")
        error = invoke(server, "run", "clips", "p", *output)
    assert str(error) == f"{option}: {param} must be something else"


@pytest.mark.parametrize("name", ["a.png", "a.PNG"])
def test_a_suffix_that_the_model_cannot_make_is_told_with_those_it_can(tmp_path, name):
    param = "input.output_format"
    reply = problem(422, "invalid_input", f"{param} must be one of mp4, webm", param=param)
    with scripted_server(Script(submit=reply)) as server:
        error = invoke(server, "run", "clips", "p", "-o", tmp_path / name)
    suffix = name.removeprefix("a")
    assert str(error) == f"-o/--output: clips cannot make {suffix}, but .mp4, .webm"


def test_several_refused_fields_are_told_by_an_option_each(tmp_path):
    errors = [
        {"param": "input.prompt", "message": "input.prompt is empty"},
        {"param": "input.num_frames", "message": "input.num_frames must be 9"},
    ]
    reply = problem(422, "invalid_input", "two", param="input.prompt", errors=errors)
    with scripted_server(Script(submit=reply)) as server:
        error = invoke(server, "run", "clips", "", "-o", tmp_path / "a.mp4")
    assert str(error) == "PROMPT: input.prompt is empty; --frames: input.num_frames must be 9"


def test_fields_map_to_options_that_exist():
    help_text = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output
    fields = (
        "prompt", "width", "height", "seed", "sampler", "first_frame", "last_clip", "control_video",
        "outpaint", "layout", "num_images", "output_format", "guidance_scale", "negative_prompt",
    )  # fmt: skip
    for field in fields:
        for option in option_of(f"input.{field}").split("/"):
            assert re.search(rf"{option}\b", help_text, re.IGNORECASE), field


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "1,2,3,4,5", "a,b,c,d"])
def test_an_outpaint_that_is_not_four_numbers_is_refused(text):
    with pytest.raises(CommandError, match="--outpaint"):
        parse_outpaint(text)


@pytest.mark.parametrize("text", ["", "0,0,1", "0,0,1,1:1", "0,0,1,1:a,b,c,d"])
def test_a_box_that_is_not_two_places_is_refused(text):
    with pytest.raises(CommandError, match="--box"):
        parse_boxes([text])


def test_a_suffix_of_no_format_is_refused(tmp_path):
    with scripted_server(Script()) as server:
        error = invoke(server, "run", "clips", "p", "-o", tmp_path / "a.avi")
    assert error.exit_code == 2
    assert "'.avi'" in str(error)
    assert ".mp4" in str(error)


def test_a_shown_job_tells_of_its_clip_and_not_of_absent_media():
    with scripted_server(Script()) as server:
        shown = invoke(server, "jobs", "show", "job_1")
    assert "/v1/jobs/job_1/outputs/0  (64x64, 9 frames at 16 fps, h264)" in shown
    assert "first_frame file_0" in shown
    for absent in ("mask", "reference_images", "outpaint"):
        assert absent not in shown
