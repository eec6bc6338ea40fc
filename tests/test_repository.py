"""Promises that the repository makes as a whole."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("config", "denoised", "jobs", "models", "server", "workers")
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/chaos.md",
    "docs/fake.md",
    "docs/http.md",
)
MOST_LINES = 400


def modules(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def make_targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_imports_run_one_way():
    program = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_the_api_description_is_that_of_the_application():
    result = subprocess.run(
        [sys.executable, "-m", "server.openapi", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_only_commands_that_exist(document):
    text = (ROOT / document).read_text()
    named = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.MULTILINE))
    assert {a or b for a, b in named} <= make_targets()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_link_only_to_files_that_exist(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("https://"):
            assert ((ROOT / document).parent / target).exists(), target


def test_the_architecture_names_only_modules_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(rf"`((?:{'|'.join(PACKAGES)})/[\w/.]+)`", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_ci_runs_what_the_documents_promise():
    script = (ROOT / ".ci" / "run").read_text()
    assert {"setup", "lint", "test"} == set(re.findall(r"^make (\w+)", script, re.MULTILINE))


@pytest.mark.parametrize("path", modules(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_short_and_says_what_it_is_for(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert text.startswith('"""'), "begin with a docstring"


def test_every_import_of_ours_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {
        re.split(r"[\[<>=; ]", requirement)[0].lower().replace("-", "_")
        for requirement in [*project["dependencies"], *extras["embedded"], *extras["train"]]
    }
    # Parts of fastapi and pydantic that show in their interfaces; triton comes with the builds of
    # torch that can use it, and nothing needs it elsewhere.
    known = {"anyio", "pydantic_core", "starlette", "triton"}
    found = {
        {"PIL": "pillow", "yaml": "pyyaml"}.get(name, name)
        for path in modules(*PACKAGES)
        for name in imported(path)
    }
    assert found - declared - known - set(PACKAGES) - sys.stdlib_module_names == set()


def imported(path):
    """The top-level names of everything a module imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]
