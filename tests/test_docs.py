"""The documents say nothing that is not so: requests resolve, tests that are named exist."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from config.model_spec import ModelSpec
from jobs.media.info import MediaInfo
from jobs.schema import file_references, resolve_input
from jobs.schema.references import MEDIA_FIELDS
from models.catalogue import discover
from tests.video_spec import VIDEO_SPEC

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "spec", [VIDEO_SPEC, *discover(["wan-vace-demo"])], ids=lambda spec: spec.id
)
def test_every_request_of_the_video_page_is_accepted(spec: ModelSpec):
    page = (ROOT / "docs/video.md").read_text("utf-8")
    [block] = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    requests = [json.loads(line) for line in block.splitlines()]
    assert {field for fields in requests for field in fields} >= set(MEDIA_FIELDS)
    for fields in requests:
        raw = json.loads(re.sub(r"file_[A-Z]+", file_id, json.dumps(fields)))
        infos = {
            reference.value: info(MEDIA_FIELDS[reference.field][0])
            for reference in file_references(spec, raw)
        }
        assert resolve_input(spec, raw, infos)["prompt"] == fields["prompt"]


def file_id(placeholder: re.Match[str]) -> str:
    return "file_" + hashlib.md5(placeholder[0].encode()).hexdigest()


def info(kind: str) -> MediaInfo:
    if kind == "image":
        return MediaInfo(kind="image", content_type="image/png", width=64, height=64)
    # As long as the clips of the bundled model, which a reader has at hand.
    return MediaInfo(
        kind="video",
        content_type="video/mp4",
        width=64,
        height=64,
        num_frames=9,
        fps=8.0,
        duration_seconds=9 / 8,
    )


def test_every_departure_names_a_test_that_exists():
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs/departures.md").read_text("utf-8"))
    assert named
    written = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    missing = [name for name in named if f"def {name}(" not in written]
    assert not missing
