"""What a generation promises: it may share any step with others, and go on from its state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.sana.conditioning import TextConditioning
from models.sana.pipeline import SanaPipeline
from tests.models.runs import (
    REQUEST,
    finish,
    grey_levels_apart,
    pipeline_of,
    relative_error,
    request,
    run,
)


def test_members_that_join_at_any_step_equal_their_solo_runs(pipeline: SanaPipeline) -> None:
    requests = [
        REQUEST,
        request(prompt="a cat", num_inference_steps=7, guidance_scale=2.0, seed=1),
        request(prompt="a photo of a wooden table " * 5, num_images=2, sampler="flow-euler"),
        request(prompt="", negative_prompt="", num_inference_steps=4, seed=3),
        request(prompt="a dog", sampler="unipc", num_inference_steps=9, seed=4),
    ]
    generations = [pipeline.prepare(asked) for asked in requests]
    assert len({generation.batch_key for generation in generations}) == 1
    # A new member every second step; the shorter ones leave while others go on.
    step = 0
    while not all(generation.is_done for generation in generations):
        present = [g for g in generations[: step // 2 + 1] if not g.is_done]
        if present:
            pipeline.step(present[::-1] if step % 3 else present)
        step += 1
    for asked, generation in zip(requests, generations, strict=True):
        alone = run(pipeline, asked)
        assert grey_levels_apart(pipeline.decode(generation), pipeline.decode(alone)) <= 1
        assert relative_error(generation.latents, alone.latents) <= 1e-4


def test_unguided_members_share_a_step_too(pipeline: SanaPipeline) -> None:
    requests = [
        request(guidance_scale=1.0, num_inference_steps=3),
        request(guidance_scale=1.0, num_inference_steps=5, prompt="a cat", num_images=2),
    ]
    together = [pipeline.prepare(asked) for asked in requests]
    finish(pipeline, *together)
    for asked, generation in zip(requests, together, strict=True):
        assert relative_error(generation.latents, run(pipeline, asked).latents) <= 1e-5


def test_what_may_differ_inside_a_batch_is_not_in_its_key(pipeline: SanaPipeline) -> None:
    key = pipeline.prepare(REQUEST).batch_key
    for same in (
        {"num_inference_steps": 5},
        {"sampler": "flow-euler"},
        {"guidance_scale": 9.0},
        {"prompt": "something much longer than before", "negative_prompt": ""},
        {"num_images": 2},
        {"seed": 1},
    ):
        assert pipeline.prepare(request(**same)).batch_key == key
    for other in ({"width": 64}, {"height": 64}, {"guidance_scale": 1.0}):
        assert pipeline.prepare(request(**other)).batch_key != key


def test_batches_that_cannot_share_a_step_are_refused_unchanged(pipeline: SanaPipeline) -> None:
    one, done = pipeline.prepare(REQUEST), run(pipeline, request(num_inference_steps=1))
    other = pipeline.prepare(request(width=64))
    for batch, message in (
        ([], "empty"),
        ([one, one], "twice"),
        ([one, other], "mixes"),
        ([one, done], "took all its 1 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline.step(batch)
    assert one.step_index == 0


def test_no_member_changes_when_a_step_fails(
    pipeline: SanaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [pipeline.prepare(REQUEST), pipeline.prepare(request(seed=1))]
    pipeline.step(batch[:1])
    before = [generation.state_dict() for generation in batch]

    def failing(*args: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    for target in ("models.sana.pipeline.take_step", "models.sana.pipeline.BatchConditioning"):
        with monkeypatch.context() as patch:
            patch.setattr(target, failing)
            pipeline._last_batch = None
            with pytest.raises(torch.OutOfMemoryError):
                pipeline.step(batch)
        for generation, state in zip(batch, before, strict=True):
            for name, tensor in generation.state_dict().items():
                assert torch.equal(tensor, state[name])
    finish(pipeline, *batch)


def test_a_stable_batch_joins_its_conditioning_once(
    pipeline: SanaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = 0
    cat = TextConditioning.cat.__func__  # type: ignore[attr-defined]

    def counting(cls: type[TextConditioning], parts: Sequence[TextConditioning]) -> Any:
        nonlocal joined
        joined += 1
        return cat(cls, parts)

    monkeypatch.setattr(TextConditioning, "cat", classmethod(counting))
    batch = [pipeline.prepare(request(seed=seed)) for seed in range(3)]
    for _ in range(4):
        pipeline.step(batch)
    assert joined == 1
    pipeline.step(batch[:2])
    pipeline.step(batch)
    assert joined == 3


def test_decoding_a_member_lets_go_of_its_batch(pipeline: SanaPipeline) -> None:
    batch = [pipeline.prepare(request(seed=seed, num_inference_steps=1)) for seed in range(2)]
    finish(pipeline, *batch)
    pipeline.decode(batch[0])
    assert pipeline._last_batch is None


@pytest.mark.parametrize("sampler", ["dpm-solver++", "unipc"])
@pytest.mark.parametrize("at_step", [0, 1, 9, 19])
def test_resuming_alone_is_bit_identical(
    pipeline: SanaPipeline, tiny_checkpoint: Path, tmp_path: Path, at_step: int, sampler: str
) -> None:
    asked = request(num_images=2, sampler=sampler)
    unbroken = run(pipeline, asked)
    first = pipeline.prepare(asked)
    for _ in range(at_step):
        pipeline.step([first])
    save_file(first.state_dict(), tmp_path / "state.safetensors")
    elsewhere = pipeline_of(tiny_checkpoint)
    resumed = elsewhere.prepare(asked)
    resumed.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert resumed.step_index == at_step
    finish(elsewhere, resumed)
    assert torch.equal(resumed.latents, unbroken.latents)


def test_a_state_is_a_snapshot(pipeline: SanaPipeline) -> None:
    generation = pipeline.prepare(REQUEST)
    pipeline.step([generation])
    state = generation.state_dict()
    copies = {name: tensor.clone() for name, tensor in state.items()}
    pipeline.step([generation])
    generation.load_state_dict(state)
    pipeline.step([generation])
    assert all(torch.equal(state[name], copies[name]) for name in state)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("latents", None, "state holds"),
        ("extra", torch.zeros(1), "state holds"),
        ("latents", torch.zeros(1, 32, 2, 2), r"latents is torch.float32 \[1, 32, 2, 2\], exp"),
        ("latents", torch.zeros(1, 32, 4, 4).half(), r"latents is torch.float16"),
        ("previous_denoised", torch.zeros(2, 32, 4, 4), r"previous_denoised is"),
        ("previous_denoised", torch.full((1, 32, 4, 4), torch.nan), "not finite"),
        ("step_index", torch.tensor(21), r"step_index is 21, expected 0\.\.20"),
        ("step_index", torch.tensor(-1), r"step_index is -1"),
        ("step_index", torch.zeros(2), r"step_index is torch.float32 \[2\], expected one"),
    ],
)
def test_a_state_of_another_request_is_refused_unchanged(
    pipeline: SanaPipeline, name: str, value: torch.Tensor | None, message: str
) -> None:
    generation = pipeline.prepare(REQUEST)
    pipeline.step([generation])
    state = pipeline.prepare(request(seed=99)).state_dict()
    if value is None:
        del state[name]
    else:
        state[name] = value
    before = generation.state_dict()
    with pytest.raises(ValueError, match=message):
        generation.load_state_dict(state)
    assert all(torch.equal(before[key], now) for key, now in generation.state_dict().items())
