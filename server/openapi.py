"""The OpenAPI document: generated from the routes, checked in as openapi.yaml.

python -m server.openapi            writes openapi.yaml at the repository root
python -m server.openapi --check    exits with 1 if it differs from the routes
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from fastapi import FastAPI

from config.settings import Settings
from server.app import create_app
from server.documentation import document

PATH = Path(__file__).resolve().parent.parent / "openapi.yaml"


def as_yaml(app: FastAPI) -> str:
    """The document as it is checked in."""
    text: str = yaml.dump(
        document(app), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    return text


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they read, and every list out in full."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def main(arguments: list[str]) -> int:
    """Writes the file, or with --check compares it. Returns the exit status."""
    text = as_yaml(create_app(Settings(redis_url="redis://localhost"), ()))
    if "--check" not in arguments:
        PATH.write_text(text)
        return 0
    if PATH.exists() and PATH.read_text() == text:
        return 0
    print(f"{PATH.name} does not match the routes: run python -m server.openapi", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
