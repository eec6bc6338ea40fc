"""A generation that is moved away between two steps, all of it, and back: no bit differs."""

from __future__ import annotations

import gc
import io
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import tensor_tree
from models.pipeline import Generation, Pipeline
from models.tensor_tree import moved, tensors_in
from models.wan.pipeline import WanVacePipeline
from tests.models import runs
from tests.models.wan import tiny_checkpoint as tiny_wan_checkpoint


@pytest.fixture(scope="module")
def tiny_wan_pipeline(tmp_path_factory: pytest.TempPathFactory) -> WanVacePipeline:
    folder = tmp_path_factory.mktemp("wan") / "tiny-wan-vace"
    return tiny_wan_checkpoint.load(tiny_wan_checkpoint.write_checkpoint(folder))


@pytest.fixture(params=["sana", "wan-vace"])
def case(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> tuple[Pipeline, Any]:
    """A pipeline and a request for it that brings conditioning of every kind."""
    if request.param == "sana":
        return runs.pipeline_of(tiny_checkpoint), runs.request(num_images=2, sampler="unipc")
    asked = tiny_wan_checkpoint.request(reference_images=(tiny_wan_checkpoint.clip(count=1),))
    return request.getfixturevalue("tiny_wan_pipeline"), asked


def tensors_anywhere(generation: Generation) -> list[Tensor]:
    """By pickling it, which looks into every object and not only where `to` looks."""
    found: list[Tensor] = []

    class Finder(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            if isinstance(value, Tensor):
                found.append(value)
                return len(found)
            return None

    Finder(io.BytesIO()).dump(generation)
    return found


def test_all_of_a_generation_is_moved(case: tuple[Pipeline, Any]) -> None:
    pipeline, asked = case
    generation = pipeline.prepare(asked)
    pipeline.step([generation])
    tensors = tensors_anywhere(generation)
    assert generation.nbytes == sum(tensor.nbytes for tensor in tensors) > 0
    generation.to("meta")
    assert {tensor.device.type for tensor in tensors_anywhere(generation)} == {"meta"}


@pytest.mark.parametrize("at_step", [0, 1, 3])
def test_the_steps_after_a_round_trip_are_bit_identical(
    case: tuple[Pipeline, Any], at_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, asked = case
    unbroken = pipeline.prepare(asked)
    while not unbroken.is_done:
        pipeline.step([unbroken])
    generation = pipeline.prepare(asked)
    for _ in range(at_step):
        pipeline.step([generation])
    left_behind = [*tensors_in(vars(generation))]
    # This machine may have one device only: copies stand for what arrives on another.
    monkeypatch.setattr(tensor_tree, "_moved", lambda tensor, device: tensor.clone())
    generation.to("cpu")
    pipeline.drop_batch()
    spoil(left_behind)
    while not generation.is_done:
        pipeline.step([generation])
    assert generation.latents.equal(unbroken.latents)


def test_of_a_generation_that_is_given_up_nothing_stays(case: tuple[Pipeline, Any]) -> None:
    pipeline, asked = case
    generation = pipeline.prepare(asked)
    pipeline.step([generation])
    seen = [weakref.ref(tensor) for tensor in tensors_anywhere(generation)]
    del generation
    pipeline.drop_batch()
    gc.collect()
    assert [ref() for ref in seen if ref() is not None] == []


def spoil(tensors: list[Tensor]) -> None:
    """What was left behind is no longer there; whoever still uses it computes nonsense."""
    with torch.inference_mode():
        for tensor in tensors:
            if tensor.is_contiguous():
                tensor.fill_(float("nan") if tensor.is_floating_point() else -1)


def test_a_move_that_fails_changes_nothing(
    case: tuple[Pipeline, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, asked = case
    generation = pipeline.prepare(asked)
    before = [*tensors_in(vars(generation))]
    left = iter(range(3))

    def move(tensor: Tensor, device: object) -> Tensor:
        if next(left, None) is None:
            raise MemoryError
        return tensor.to("meta")

    monkeypatch.setattr(tensor_tree, "_moved", move)
    with pytest.raises(MemoryError):
        generation.to("meta")
    assert all(a is b for a, b in zip(before, tensors_in(vars(generation)), strict=True))


def test_values_without_tensors_are_left_as_they_are() -> None:
    value = {"a": (1, "two"), "b": [None]}
    assert moved(value, "meta") is value
    mixed = moved({"a": (1, torch.zeros(2)), "b": [3]}, "meta")
    assert mixed["a"][0] == 1
    assert mixed["a"][1].device.type == "meta"
