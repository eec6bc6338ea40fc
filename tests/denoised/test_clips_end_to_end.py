"""Clips from the command line through the real API, queue and worker, over a pretended model."""

from __future__ import annotations

import io
import json
import threading

import av
import numpy as np
import pytest
from fake_pipeline import fake_clip_spec
from http_harness import serving
from PIL import Image
from process_harness import WorkerProcess
from typer.testing import CliRunner

from denoised.cli import app
from denoised.client import Client
from jobs.blobs import FileBlobStore
from jobs.connections import connect
from jobs.keeper import Keeper
from models.pipeline import Clip
from workers.thumbnails import STRIP_GAP
from workers.video_outputs import encode_clip


@pytest.fixture
def server(settings):
    """An API and a worker of the model "clips", with previews at every step."""
    settings = settings.model_copy(update={"preview_seconds": 0.001})
    stop = threading.Event()
    with serving(settings, (fake_clip_spec(),)) as api, connect(settings.redis_url) as redis:
        keeper = Keeper(redis, settings, FileBlobStore(settings.blob_dir))
        thread = threading.Thread(target=keeper.run, args=(stop,))
        thread.start()
        worker = WorkerProcess(settings, "clips")
        try:
            yield api
        finally:
            worker.process.kill()
            worker.process.join()
            worker.process.close()
            stop.set()
            thread.join()


def invoke(server, *arguments):
    result = CliRunner().invoke(app, [*map(str, arguments), "--url", server.url])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_media_go_up_and_a_clip_comes_down_that_carries_its_recipe(server, tmp_path):
    picture, source = tmp_path / "first.png", tmp_path / "control.mp4"
    Image.new("RGB", (48, 80), (200, 30, 30)).save(picture)
    grey = np.full((9, 64, 64, 3), 90, dtype=np.uint8)
    source.write_bytes(encode_clip(Clip(grey, 16.0), "mp4", quality=80, recipe={}).data)
    target = tmp_path / "clip.mp4"
    output = invoke(
        server,
        *("run", "clips", "a red circle", "-o", target, "--seed", 5, "--frames", 13),
        *("--width", 64, "--height", 64, "--image", picture, "--reference", picture),
        *("--control-video", source, "--control", "grey"),
    )
    assert "64x64, 13 frames at 16 fps, h264, seed 5" in output
    with av.open(str(target)) as container:
        assert len(list(container.decode(video=0))) == 13

    recipe = json.loads(CliRunner().invoke(app, ["recipe", str(target)]).output)
    assert recipe["model"] == "clips"
    assert recipe["input"]["seed"] == 5

    with Client(server.url) as client:
        [job] = client.list().data
        assert recipe["input"] == job.input
        [result] = job.outputs
        assert result.variants == ["thumbnail", "frames"]
        thumbnail = Image.open(io.BytesIO(client.download(job.id, variant="thumbnail")))
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (64, 64))
        strip = Image.open(io.BytesIO(client.download(job.id, variant="frames")))
        assert strip.size == (9 * 64 + 8 * STRIP_GAP, 64)
        events = list(client.watch(job.id))
        assert "job.preview" in [event.type for event in events]
        assert events[-1].data["outputs"][0]["num_frames"] == 13
        assert client.model("clips").residency.mode == "float32"
        # The recipe's input is a request; deterministic or not, the pretended model repeats itself.
        again = client.submit("clips", recipe["input"], wait_seconds=60)
        assert again.outputs[0].sha256 == result.sha256


def test_a_file_of_the_job_that_is_lost_fails_it_by_the_fields_name(server, tmp_path):
    picture = tmp_path / "first.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(picture)
    with Client(server.url) as client:
        stored = client.upload(picture)
        busy = client.submit("clips", {"prompt": "busy", "num_inference_steps": 200})
        blocked = [
            client.submit("clips", {"prompt": f"busy {n}", "num_inference_steps": 200})
            for n in range(3)
        ]
        job = client.submit("clips", {"prompt": "p", "first_frame": stored.id}, priority="batch")
        lost = list(server.settings.blob_dir.rglob("inputs/first_frame"))
        assert len(lost) == 1
        lost[0].unlink()
        for other in (busy, *blocked):
            client.cancel(other.id)
        list(client.watch(job.id))
        ended = client.get(job.id)
    assert ended.status == "failed"
    assert ended.error is not None
    assert (ended.error.code, ended.error.param) == ("invalid_input", "input.first_frame")
