"""Commands against a whole server: prompt to picture, looking at jobs, cancelling them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from PIL import Image

from denoised.client import ApiError
from tests.denoised.conftest import ENDLESS_STEPS, denoised, environment, until
from tests.denoised.scripted_server import Reply, scripted_server
from workers.outputs import read_recipe


def test_a_prompt_becomes_a_picture_that_carries_its_recipe(server, tmp_path):
    picture = tmp_path / "new folder" / "picture.png"
    result = denoised(
        *("run", "tiny", "a red circle", "-o", picture, "--url", server.url),
        *("--seed", 7, "--steps", 3, "--guidance", 2.5, "--negative", "blue"),
    )
    assert result.returncode == 0, result.stderr
    assert str(picture) in result.stdout
    assert "denoising: step 3/3" in result.stderr
    with Image.open(picture) as image:
        assert (image.format, image.size) == ("PNG", (128, 128))
    recipe = read_recipe(picture)["input"]
    assert (recipe["prompt"], recipe["negative_prompt"]) == ("a red circle", "blue")
    assert (recipe["seed"], recipe["num_inference_steps"], recipe["guidance_scale"]) == (7, 3, 2.5)


@pytest.mark.parametrize(("suffix", "format"), [("jpg", "JPEG"), ("webp", "WEBP")])
def test_several_pictures_are_numbered_and_of_the_format_their_name_tells(
    server, tmp_path, suffix, format
):
    picture = tmp_path / f"picture.{suffix}"
    result = denoised(
        *("run", "tiny", "a square", "-o", picture, "--url", server.url),
        *("--steps", 1, "-n", 2, "--seed", 3),
    )
    assert result.returncode == 0, result.stderr
    for number in range(2):
        file = tmp_path / f"picture-{number}.{suffix}"
        with Image.open(file) as image:
            assert image.format == format
        assert read_recipe(file)["input"]["seed"] == 3 + number


def test_a_recipe_submitted_twice_deterministically_gives_equal_bytes(server, client, tmp_path):
    pictures = []
    for number in range(2):
        file = tmp_path / f"{number}.png"
        result = denoised(
            *("run", "tiny", "equal", "-o", file, "--url", server.url),
            *("--steps", 2, "--seed", 5, "--deterministic"),
        )
        assert result.returncode == 0, result.stderr
        pictures.append(file.read_bytes())
    assert pictures[0] == pictures[1]


def test_a_refused_request_names_field_and_range(server):
    result = denoised("run", "tiny", "p", "--width", 100, "--url", server.url)
    assert result.returncode == 1
    assert "input.width" in result.stderr
    assert "64 to 256 in steps of 32" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_that_the_server_does_not_offer_is_refused_with_those_it_does(server):
    result = denoised("run", "no-such", "p", "--url", server.url)
    assert result.returncode == 2
    assert "does not offer 'no-such', but tiny" in result.stderr


@pytest.mark.parametrize("place", ["--url", "--data-dir"])
def test_a_path_to_nothing_is_not_looked_for_among_the_models_of_a_server(server, place):
    found = server.url if place == "--url" else server.data_dir
    result = denoised("run", "./nosuch.gguf", "p", place, found)
    assert result.returncode == 2
    assert result.stderr == "denoised: ./nosuch.gguf: no such file or folder\n"


def test_a_running_server_is_found_by_its_data_directory(server, tmp_path):
    result = denoised(
        *("run", "tiny", "p", "--steps", 1, "-o", tmp_path / "a.png"),
        *("--data-dir", server.data_dir),
    )
    assert result.returncode == 0, result.stderr
    assert "private server" not in result.stderr


def test_a_server_on_another_data_directory_is_not_asked_for_the_one_named(tmp_path):
    with scripted_server(lambda *_: Reply(500)) as other:
        result = denoised(
            *("run", "fake", "p", "--steps", 1, "-o", tmp_path / "a.png"),
            *("--data-dir", tmp_path / "own"),
            DENOISED_PORT=other.url.rpartition(":")[2],
        )
    assert result.returncode == 0, result.stderr
    assert "starting a private server" in result.stderr
    assert other.requests == []


def test_a_folder_that_the_running_server_does_not_offer_gets_a_private_one(server, tmp_path):
    folder = tmp_path / "another"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "FakePipeline"}')
    picture = tmp_path / "a.png"
    result = denoised(
        *("run", folder, "p", "--steps", 1, "-o", picture, "--data-dir", server.data_dir),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.index("does not offer") < result.stderr.index("starting a private server")
    assert picture.exists()
    assert server.is_ready()
    assert not list(server.data_dir.glob("private*"))


def test_jobs_are_listed_shown_and_watched(server, client):
    job = client.submit("tiny", {"prompt": "to be looked at", "num_inference_steps": 2})
    watched = denoised("jobs", "watch", job.id, "--url", server.url)
    assert watched.returncode == 0, watched.stderr
    assert "succeeded" in watched.stderr

    listed = denoised("jobs", "list", "--url", server.url)
    assert job.id in listed.stdout
    assert "to be looked at" in listed.stdout
    page = json.loads(denoised("jobs", "list", "--json", "--url", server.url).stdout)
    assert job.id in [entry["id"] for entry in page["data"]]

    shown = denoised("jobs", "show", job.id, "--url", server.url).stdout
    assert "succeeded" in shown
    assert "2 of 2 steps" in shown
    record = json.loads(denoised("jobs", "show", job.id, "--json", "--url", server.url).stdout)
    assert record == json.loads(client.get(job.id).model_dump_json())

    events = denoised("jobs", "watch", job.id, "--json", "--url", server.url).stdout.splitlines()
    types = [json.loads(line)["type"] for line in events]
    assert types[0] == "job.queued"
    assert types[-1] == "job.succeeded"


def test_no_jobs_are_told_as_none(server):
    listed = denoised("jobs", "list", "--model", "no-such", "--url", server.url)
    assert (listed.returncode, listed.stdout) == (0, "no jobs\n"), listed.stderr


def test_a_job_that_does_not_exist_is_refused_in_one_line(server):
    result = denoised("jobs", "show", "job_nowhere", "--url", server.url)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert "no job with this id" in line


def test_a_cancelled_job_ends_and_its_watcher_fails(server, client):
    job = client.submit("tiny", {"prompt": "in vain", "num_inference_steps": ENDLESS_STEPS})
    result = denoised("jobs", "cancel", job.id, "--url", server.url)
    assert result.returncode == 0, result.stderr
    watched = denoised("jobs", "watch", job.id, "--url", server.url)
    assert watched.returncode == 1
    assert client.get(job.id).status == "cancelled"
    again = denoised("jobs", "cancel", job.id, "--url", server.url)
    assert again.stdout == f"{job.id} is cancelled\n"


def test_ctrl_c_cancels_the_job(server, client, tmp_path):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "denoised", "run", "tiny", "interrupted"),
            *("--steps", str(ENDLESS_STEPS), "--url", server.url, "-o", str(tmp_path / "a.png")),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("denoising"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "cancelled job" in rest
    assert "Traceback" not in rest
    [job] = [entry for entry in client.list().data if entry.input["prompt"] == "interrupted"]
    until(lambda: client.get(job.id).status == "cancelled", "the job is cancelled")
    assert not (tmp_path / "a.png").exists()


def test_models_tell_their_limits_and_whether_they_are_resident(server, checkpoint):
    listed = denoised("models", "list", "--model", checkpoint, "--url", server.url)
    assert "128 (64..256)" in listed.stdout
    assert "resident" in listed.stdout
    [entry] = json.loads(
        denoised("models", "list", "--model", checkpoint, "--json", "--url", server.url).stdout
    )
    assert entry["residency"]["state"] == "resident"
    assert str(checkpoint) not in json.dumps(entry)


def test_the_models_listed_are_those_of_the_server(server):
    for found in (("--url", server.url), ("--data-dir", server.data_dir)):
        listed = denoised("models", "list", *found)
        assert [line.split()[0] for line in listed.stdout.splitlines()] == ["model", "tiny"]
        [entry] = json.loads(denoised("models", "list", "--json", *found).stdout)
        assert (entry["id"], entry["residency"]["state"]) == ("tiny", "resident")


def test_a_model_asked_for_that_the_server_lacks_is_listed_as_such(server):
    listed = denoised("models", "list", "--model", "fake", "--url", server.url)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["model", "fake"]
    assert "not offered" in listed.stdout


def test_models_are_listed_without_a_server(checkpoint, tmp_path):
    listed = denoised(
        "models", "list", "--model", checkpoint, DENOISED_PORT="1", DENOISED_DATA_DIR=str(tmp_path)
    )
    assert listed.returncode == 0
    assert "tiny" in listed.stdout
    assert "no server" in listed.stdout
    assert listed.stderr.startswith("no server answers at http://127.0.0.1:1: these are models on")


def test_a_finished_job_can_be_deleted_through_the_client(client):
    job = client.submit("tiny", {"prompt": "p", "num_inference_steps": 1}, wait_seconds=60)
    assert job.status == "succeeded"
    client.delete(job.id)
    with pytest.raises(ApiError) as caught:
        client.get(job.id)
    assert caught.value.status == 404
