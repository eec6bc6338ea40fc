"""Checkpoint files: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from engine_harness import CPU, claimed

from workers.checkpoint_file import (
    DAMAGED,
    FOREIGN,
    CheckpointUnusable,
    facts_of,
    pack,
    unpack,
)
from workers.device import Device
from workers.recipe import Recipes

STATE = {"latents": torch.randn(1, 4, 2, 2), "step_index": torch.tensor(7)}
JOB = claimed("a word")
FACTS = facts_of(JOB, {"model": "fake", "checkpoint": "sha256:00"})


def refusal(data: bytes, facts: dict[str, str] = FACTS, step: int = 7) -> str:
    with pytest.raises(CheckpointUnusable) as caught:
        unpack(data, sha256(data).hexdigest(), facts, step)
    return caught.value.cause


def test_a_state_comes_back_to_the_bit() -> None:
    data = pack(STATE, FACTS, 7)
    state = unpack(data, sha256(data).hexdigest(), FACTS, 7)
    assert state.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)


@pytest.mark.parametrize("place", [0, 9, 200, -1])
def test_a_single_flipped_byte_is_noticed(place: int) -> None:
    data = bytearray(pack(STATE, FACTS, 7))
    digest = sha256(data).hexdigest()
    data[place] ^= 1
    with pytest.raises(CheckpointUnusable) as caught:
        unpack(bytes(data), digest, FACTS, 7)
    assert caught.value.cause == DAMAGED


@pytest.mark.parametrize("data", [b"", b"no safetensors", pack(STATE, FACTS, 7)[:-1]])
def test_what_is_no_checkpoint_is_damaged_even_under_its_own_digest(data: bytes) -> None:
    assert refusal(data) == DAMAGED


@pytest.mark.parametrize("fact", ["format", "job", "input", "model", "checkpoint"])
def test_a_checkpoint_of_anything_else_is_foreign(fact: str) -> None:
    assert refusal(pack(STATE, FACTS | {fact: "other"}, 7)) == FOREIGN
    assert refusal(pack(STATE, {k: v for k, v in FACTS.items() if k != fact}, 7)) == FOREIGN


def test_a_checkpoint_of_another_step_is_foreign() -> None:
    assert refusal(pack(STATE, FACTS, 6)) == FOREIGN


def test_another_input_of_the_same_job_makes_other_facts() -> None:
    assert facts_of(replace(JOB, input=JOB.input | {"seed": 1}), {}) != facts_of(JOB, {})
    assert facts_of(replace(JOB, input=dict(reversed(JOB.input.items()))), {}) == facts_of(JOB, {})


def test_the_same_weights_resting_alike_are_the_same_model() -> None:
    here, there = (Recipes("m", "sha256:00", CPU, "bf16") for _ in range(2))
    assert here.identity(JOB) == there.identity(JOB)
    for other in (
        Recipes("m", "sha256:01", CPU, "bf16"),
        Recipes("m", "sha256:00", CPU, "packed"),
        Recipes("m", "sha256:00", Device("cpu", "bfloat16"), "bf16"),
    ):
        assert here.identity(JOB) != other.identity(JOB)


def test_a_deterministic_job_also_needs_the_same_device_and_versions() -> None:
    recipes = Recipes("m", "sha256:00", CPU, "bf16")
    more = recipes.identity(replace(JOB, deterministic=True))
    assert more.keys() - recipes.identity(JOB).keys() == {"denoised", "torch", "device"}
