"""What a worker learns and keeps for the next one: small JSON files in the data directory.

Each holds experience, never anything that is needed: one that cannot be read or written costs what
was in it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger(__name__)


def read_json(path: Path) -> Any:
    """What the file holds; None where there is none, or none that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def write_json(path: Path, document: Any) -> None:
    """Replace the file in one go; a failure is only logged."""
    # Several workers may start at once: each writes a file of its own and renames it into place.
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(document, indent=1))
        temporary.replace(path)
    except OSError as error:
        log.warning("cannot remember for the next worker", file=path.name, error=str(error))
