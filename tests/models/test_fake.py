"""The fake model: pixels that show every step, alone or in a batch, and failures on request."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.catalogue import describe, discover
from models.errors import CheckpointError
from models.fake.pipeline import FakePipeline
from models.fake.request import FakeRequest
from models.loading import load

ROOT = Path(__file__).parents[2]
REQUEST = FakeRequest(
    prompt="anything",
    negative_prompt="",
    width=64,
    height=64,
    num_inference_steps=5,
    guidance_scale=1.0,
    num_images=1,
    seed=7,
    sampler="flow-euler",
)


@pytest.fixture(scope="module")
def pipeline() -> FakePipeline:
    [spec] = discover(["fake"])
    found = load(spec, device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(found, FakePipeline)
    return found


@pytest.fixture(scope="module")
def documented() -> Callable[[int, int], list[tuple[int, int, int]]]:
    """The function that `docs/fake.md` prints."""
    [program] = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/fake.md").read_text("utf-8"), re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(program, names)
    return names["fields"]


def finished(pipeline: FakePipeline, request: FakeRequest) -> list[np.ndarray]:
    generation = pipeline.prepare(request)
    while not generation.is_done:
        pipeline.step([generation])
    return [np.asarray(picture) for picture in pipeline.decode(generation)]


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 2])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_pixels_are_what_the_page_computes_from_seed_and_steps(
    pipeline: FakePipeline, documented: Any, seed: int, steps: int
) -> None:
    request = replace(REQUEST, seed=seed, num_inference_steps=steps, num_images=2, width=32)
    for index, picture in enumerate(finished(pipeline, request)):
        assert picture.shape == (64, 32, 3)
        expected = np.array(documented(seed + index, steps), np.uint8).reshape(8, 8, 3)
        assert np.array_equal(picture, expected.repeat(8, axis=0).repeat(4, axis=1))


@pytest.mark.parametrize("harm", ["lost", "doubled", "swapped"])
def test_a_step_lost_doubled_or_out_of_turn_shows(pipeline: FakePipeline, harm: str) -> None:
    right = finished(pipeline, REQUEST)
    generation = pipeline.prepare(REQUEST)
    order = {"lost": [0, 1, 3, 4], "doubled": [0, 1, 2, 2, 3, 4], "swapped": [0, 2, 1, 3, 4]}[harm]
    for number in order:
        generation.step_index = number
        pipeline.step([generation])
    assert not np.array_equal(np.asarray(pipeline.decode(generation)[0]), right[0])


def test_members_of_any_batch_equal_their_solo_runs(pipeline: FakePipeline) -> None:
    requests = [
        replace(REQUEST, seed=seed, num_inference_steps=steps, num_images=images)
        for seed, steps, images in [(1, 5, 1), (2, 8, 3), (3, 6, 2)]
    ]
    members = [pipeline.prepare(request) for request in requests]
    pipeline.step(members[1:2])
    while open_ones := [member for member in members if not member.is_done]:
        pipeline.step(open_ones)
    for member, request in zip(members, requests, strict=True):
        together = [np.asarray(picture) for picture in pipeline.decode(member)]
        assert all(map(np.array_equal, together, finished(pipeline, request)))


@pytest.mark.parametrize("step", [0, 1, 3, 5])
def test_a_saved_state_goes_on_to_the_same_pixels(pipeline: FakePipeline, step: int) -> None:
    first = pipeline.prepare(REQUEST)
    for _ in range(step):
        pipeline.step([first])
    second = pipeline.prepare(REQUEST)
    second.load_state_dict(first.state_dict())
    assert second.step_index == step
    while not second.is_done:
        pipeline.step([second])
    assert np.array_equal(np.asarray(pipeline.decode(second)[0]), finished(pipeline, REQUEST)[0])


def test_previews_show_the_latents(pipeline: FakePipeline) -> None:
    generation = pipeline.prepare(replace(REQUEST, num_images=2))
    pipeline.step([generation])
    assert [picture.size for picture in pipeline.preview(generation)] == [(16, 16)] * 2


def test_a_failure_comes_in_its_step_and_moves_nobody(pipeline: FakePipeline) -> None:
    failing = pipeline.prepare(replace(REQUEST, failure="error", failure_step=2))
    other = pipeline.prepare(REQUEST)
    pipeline.step([failing, other])
    before = other.latents.clone()
    with pytest.raises(RuntimeError, match="step 2 fails as requested"):
        pipeline.step([failing, other])
    assert (failing.step_index, other.step_index) == (1, 1)
    assert torch.equal(other.latents, before)


def test_work_that_is_left_half_way_has_moved_nobody(pipeline: FakePipeline) -> None:
    def leave() -> None:
        raise InterruptedError("nobody wants it any more")

    member = pipeline.prepare(REQUEST)
    before = member.latents.clone()
    with pytest.raises(InterruptedError):
        pipeline.step([member], leave)
    assert member.step_index == 0
    assert torch.equal(member.latents, before)
    with pytest.raises(InterruptedError):
        pipeline.prepare(REQUEST, leave)


def test_memory_runs_out_in_a_step_or_in_large_batches(pipeline: FakePipeline) -> None:
    at_step = pipeline.prepare(replace(REQUEST, failure="out_of_memory", failure_step=2))
    pipeline.step([at_step])
    with pytest.raises(torch.OutOfMemoryError):
        pipeline.step([at_step])
    crowded = replace(REQUEST, failure="out_of_memory", failure_above_images=2)
    members = [pipeline.prepare(crowded), pipeline.prepare(replace(REQUEST, num_images=2))]
    with pytest.raises(torch.OutOfMemoryError, match="3 images"):
        pipeline.step(members)
    pipeline.step(members[:1])
    assert members[0].step_index == 1


def test_the_memory_asked_for_is_held_by_the_generation(pipeline: FakePipeline) -> None:
    assert pipeline.prepare(replace(REQUEST, memory_bytes=12345)).ballast.nbytes == 12345


def test_wrong_batches_are_refused(pipeline: FakePipeline) -> None:
    member, wide = pipeline.prepare(REQUEST), pipeline.prepare(replace(REQUEST, width=128))
    with pytest.raises(ValueError, match="empty"):
        pipeline.step([])
    with pytest.raises(ValueError, match="twice"):
        pipeline.step([member, member])
    with pytest.raises(ValueError, match="mixes"):
        pipeline.step([member, wide])
    with pytest.raises(ValueError, match="step 0 of 5"):
        pipeline.decode(member)


def test_a_folder_gives_its_own_id_and_defaults(tmp_path: Path) -> None:
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "FakePipeline"}')
    (folder / "denoised.json").write_text('{"fake": {"step_seconds": 1.5}}')
    spec = describe(folder)
    assert (spec.id, spec.fake.step_seconds, spec.fake.memory_bytes) == ("slow", 1.5, 0)
    (folder / "denoised.json").write_text('{"fake": {"step_seconds": -1}}')
    with pytest.raises(CheckpointError, match=r"denoised.json: fake.step_seconds: .*\(found -1\)"):
        describe(folder)
