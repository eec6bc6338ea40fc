"""JSON objects of a checkpoint folder, read as untrusted input: one call, one kind of error.

`model_index.json`, every component's `config.json` and the shard index go through here. Nothing in
this module needs torch, so that the catalogue can describe a model without importing it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.errors import CheckpointError


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises CheckpointError naming the file when it is missing, unreadable, not JSON in UTF-8, or
    JSON but no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value
