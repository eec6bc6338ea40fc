"""Limits and defaults of the fake model: a folder that says it holds one becomes a spec's fields.

Such a folder has a `model_index.json` that names `FakePipeline`, and a `denoised.json` for what is
to differ from the values here. Imports no tensor library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.weights.json_file import read_json_object

PIPELINE_CLASS = "FakePipeline"


def is_at(folder: Path) -> bool:
    """Whether `folder` holds a fake model."""
    index = folder / "model_index.json"
    return index.is_file() and read_json_object(index).get("_class_name") == PIPELINE_CLASS


def spec_fields() -> dict[str, Any]:
    """The fields of the spec but `id` and `source`."""
    side = {"default": 64, "minimum": 8, "maximum": 2048, "multiple_of": 8}
    return {
        "family": "fake",
        "width": side,
        "height": side,
        "num_inference_steps": {"default": 20, "minimum": 1, "maximum": 100_000},
        "guidance_scale": {"default": 1.0, "minimum": 1.0, "maximum": 20.0},
        "samplers": ("flow-euler",),
        "fake": {},
    }
