"""The command line: help at once, precise refusals, no traceback for what is to be expected."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "diffusers", "fastapi", "uvicorn", "redis", "httpx2", "numpy")


def run(*arguments, **env):
    """Run the command line in a process of its own, with no DENOISED_* but those given."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("DENOISED_")}
    return subprocess.run(
        [sys.executable, "-m", "denoised", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=clean | {"COLUMNS": "200", "NO_COLOR": "1"} | env,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def refusal(*arguments, exit_code, **env):
    """The one line that a refused command leaves."""
    result = run(*arguments, **env)
    assert result.returncode == exit_code, result.stderr
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    return line


def test_loading_the_command_line_loads_nothing_heavy():
    code = "import sys, denoised.cli; print(*[m for m in sys.argv[1:] if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("module", ["denoised.supervisor", "denoised.client", "denoised.connect"])
def test_the_supervisor_and_the_client_load_no_tensor_library(module):
    code = f"import sys, {module}; print(*[m for m in sys.argv[1:] if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code, "torch", "transformers", "fastapi"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == ""


@pytest.mark.parametrize(
    "command",
    [
        (), ("serve",), ("run",), ("recipe",), ("api",), ("worker",), ("keeper",), ("jobs",),
        ("jobs", "list"), ("jobs", "show"), ("jobs", "watch"), ("jobs", "cancel"), ("models",),
        ("models", "list"), ("models", "inspect"),
    ],
)  # fmt: skip
def test_every_command_explains_itself(command):
    result = run(*command, "--help")
    assert result.returncode == 0
    assert "Usage:" in result.stdout
    assert "--die-with" not in result.stdout


def test_the_version_is_that_of_the_package():
    from denoised import __version__

    assert run("--version").stdout == f"denoised {__version__}\n"


@pytest.mark.parametrize("process", ["api", "worker", "keeper"])
def test_a_process_alone_asks_for_a_redis(process):
    line = refusal(process, exit_code=2)
    assert "needs a Redis" in line
    assert "DENOISED_REDIS_URL" in line


def test_a_bad_variable_is_named():
    line = refusal("serve", exit_code=2, DENOISED_PORT="seventy")
    assert line.startswith("denoised: DENOISED_PORT: ")
    assert "seventy" in line


def test_a_bad_flag_is_named():
    line = refusal("serve", "--port", "70000", exit_code=2)
    assert line.startswith("denoised: --port: ")
    assert "65535" in line


def test_a_redis_url_of_another_kind_is_refused():
    line = refusal("serve", exit_code=2, DENOISED_REDIS_URL="amqp://localhost")
    assert line.startswith("denoised: DENOISED_REDIS_URL: ")
    assert "amqp://localhost" in line


def test_an_unknown_model_is_refused_before_anything_starts(tmp_path):
    line = refusal("serve", "--model", "no-such", "--data-dir", tmp_path / "d", exit_code=2)
    assert "no-such" in line
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("name", ["./nosuch", "nosuch.gguf", "~/nosuch/model.safetensors"])
def test_a_model_that_can_only_be_a_path_is_said_to_be_missing(name, tmp_path):
    for command in (("run", name, "p"), ("serve", "--model", name)):
        line = refusal(*command, "--data-dir", tmp_path / "d", exit_code=2, DENOISED_PORT="1")
        assert line == f"denoised: {name}: no such file or folder"
    assert not (tmp_path / "d").exists()


def test_an_unknown_output_format_is_refused_before_anything_starts(tmp_path):
    line = refusal("run", "sana-demo", "a prompt", "-o", tmp_path / "picture.gif", exit_code=2)
    assert "'.gif'" in line
    assert ".png" in line


@pytest.mark.parametrize("option", ["--clip", "--picture"])
def test_the_demo_refuses_what_it_cannot_write_before_anything_starts(option, tmp_path):
    data_dir = tmp_path / "d"
    line = refusal("demo", option, tmp_path / "foo.gif", "--data-dir", data_dir, exit_code=2)
    suffixes = ".webp, .mp4, .webm" if option == "--clip" else ".png, .jpg, .jpeg, .webp"
    assert line == f"denoised: {option}: the suffix '.gif' is none of {suffixes}; change it"
    assert not data_dir.exists()


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    line = refusal("run", "sana-demo", "p", "-o", tmp_path / "file" / "a.png", exit_code=2)
    assert f"cannot make {tmp_path / 'file'}" in line


@pytest.mark.parametrize(
    "command",
    [("jobs", "list"), ("jobs", "show", "job_1"), ("run", "sana-demo", "a prompt"), ("demo",)],
)
def test_a_server_that_is_not_there_is_named(command):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    told = f"denoised: no server answers at {url}"
    assert refusal(*command, "--url", url, exit_code=1) == told
    assert refusal(*command, exit_code=1, DENOISED_URL=url) == told


def test_a_picture_without_recipe_and_a_missing_file_are_told_apart(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert "carries no recipe" in refusal("recipe", tmp_path / "plain.png", exit_code=1)
    assert "No such file" in refusal("recipe", tmp_path / "missing.png", exit_code=1)


def test_a_recipe_is_printed_as_json_without_loading_torch(tmp_path):
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_itxt("denoised", json.dumps({"denoised": "0.1.0", "input": {"prompt": "ein Köter"}}))
    Image.new("RGB", (8, 8)).save(tmp_path / "made.png", pnginfo=info)
    result = run("recipe", tmp_path / "made.png")
    assert json.loads(result.stdout)["input"]["prompt"] == "ein Köter"
    code = (
        "import sys; from workers.outputs import read_recipe; from pathlib import Path;"
        "read_recipe(Path(sys.argv[1])); print('torch' in sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "made.png"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout == "False\n"
