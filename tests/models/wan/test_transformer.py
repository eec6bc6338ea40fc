"""The Wan-VACE transformer against diffusers' on the same random weights, and against itself."""

from __future__ import annotations

import pytest
import torch

from models.wan.step_conditioning import pad_prompts
from models.wan.transformer import TextConditioning, TimeModulation
from tests.models.wan.tiny_transformer import (
    TEXT_DIM,
    TINY,
    make_inputs,
    make_ours,
    make_reference,
    relative_error,
    run_ours,
    run_reference,
)

VARIANTS = {
    "narrow heads": {},
    "heads of 128": {"attention_head_dim": 128},
    "a hint for every block": {"vace_layers": [0, 1, 2, 3]},
    "uneven hints": {"vace_layers": [0, 3]},
    "other channels": {"in_channels": 8, "out_channels": 6, "vace_in_channels": 10},
    "patches of one": {"patch_size": (1, 1, 1)},
}
# Parity in float32 is limited by the order of summation alone.
TOLERANCE = 1e-5
# A batch of another size picks other kernels, which sum in another order.
BATCH_TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def pair():
    reference = make_reference()
    return reference, make_ours(reference)


def fitted(shape, inputs):
    """The inputs with as many channels as `shape` takes."""
    latents, timesteps, prompts, context = inputs
    latents = latents[:, : shape.get("in_channels", 16)]
    return latents, timesteps, prompts, context[:, : shape.get("vace_in_channels", 96)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_output_equals_the_reference(variant):
    reference = make_reference({**TINY, **VARIANTS[variant]})
    ours = make_ours(reference)
    inputs = fitted(VARIANTS[variant], make_inputs(2, 3))
    output = run_ours(ours, *inputs)
    truth = run_reference(reference, *inputs)
    assert output.shape == truth.shape
    assert relative_error(output, truth) <= TOLERANCE


@pytest.mark.parametrize(
    ("batch", "frames", "height", "width"), [(1, 1, 4, 6), (1, 2, 2, 2), (3, 4, 6, 4), (2, 6, 4, 4)]
)
def test_output_equals_the_reference_at_any_size(pair, batch, frames, height, width):
    # More frames than the clip has is what prepended reference pictures amount to.
    inputs = make_inputs(batch, frames, height, width)
    output = run_ours(pair[1], *inputs)
    assert relative_error(output, run_reference(pair[0], *inputs)) <= TOLERANCE


@pytest.mark.parametrize(
    "scales",
    [
        torch.tensor([0.0, 1.0]),
        torch.tensor([0.6, 1.4]),
        torch.tensor([[0.0, 0.0], [1.0, 0.5], [2.0, 1.5]]),
    ],
    ids=["off and on", "by layer", "by layer and clip"],
)
def test_hints_are_weighed_as_in_the_reference(pair, scales):
    inputs = make_inputs(3, 2)
    output = run_ours(pair[1], *inputs, scales)
    assert relative_error(output, run_reference(pair[0], *inputs, scales)) <= TOLERANCE
    assert relative_error(output, run_ours(pair[1], *inputs)) > 1e-3


def test_a_prompt_as_long_as_the_model_reads_has_no_padding(pair):
    latents, timesteps, _, context = make_inputs(2, 1)
    prompts = [torch.randn(512, TEXT_DIM), torch.randn(511, TEXT_DIM)]
    output = run_ours(pair[1], latents, timesteps, prompts, context)
    truth = run_reference(pair[0], latents, timesteps, prompts, context)
    assert relative_error(output, truth) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 100, 509, 510, 511, 512])
def test_padding_columns_weigh_as_much_as_the_padding(length, dtype):
    text, bias = pad_prompts([torch.ones(length, 3), torch.ones(7, 3)], 512, dtype)
    weight = bias[0, 0, 0].double().exp()
    assert text.shape[1] == bias.shape[-1]
    assert weight[:length].sum() == length
    # Two columns of bfloat16 leave a hundredth of the second one's share of a few percent.
    assert weight.sum().item() == pytest.approx(512, rel=1e-6 if dtype == torch.float32 else 5e-4)
    assert not text[0, length:].any()


def test_a_timestep_shared_by_the_batch_may_be_given_once(pair):
    latents, timesteps, prompts, context = make_inputs(3, 2)
    same = timesteps[:1].expand(3)
    ours = pair[1]
    with torch.no_grad():
        once = ours(
            latents,
            ours.embed_timesteps(timesteps[:1]),
            ours.encode_text(prompts),
            ours.encode_context(context),
        )
    repeated = run_ours(ours, latents, same, prompts, context)
    assert relative_error(once, repeated) <= BATCH_TOLERANCE


def test_a_clip_does_not_depend_on_its_neighbours(pair):
    latents, timesteps, prompts, context = make_inputs(3, 2)
    scales = torch.tensor([[0.0, 0.3], [1.0, 0.5], [2.0, 1.5]])
    together = run_ours(pair[1], latents, timesteps, prompts, context, scales)
    for row in range(3):
        rows = slice(row, row + 1)
        alone = run_ours(
            pair[1], latents[rows], timesteps[rows], prompts[rows], context[rows], scales[row]
        )
        assert relative_error(together[rows], alone) <= BATCH_TOLERANCE


def test_conditioning_can_be_cut_and_joined(pair):
    ours = pair[1]
    latents, timesteps, prompts, context = make_inputs(3, 2)
    truth = run_ours(ours, latents, timesteps, prompts, context)
    with torch.no_grad():
        text = TextConditioning.cat([ours.encode_text([prompt]) for prompt in prompts])
        time = TimeModulation.cat([ours.embed_timesteps(value[None]) for value in timesteps])
        order = [2, 0, 1]
        output = ours(
            latents[order],
            time.index(order),
            text.index(order),
            ours.encode_context(context)[order],
        )
    assert relative_error(output, truth[order]) <= BATCH_TOLERANCE


def test_a_schedule_embedded_at_once_equals_step_by_step(pair):
    timesteps = torch.tensor([1000.0, 937.5, 416.25, 3.0])
    with torch.no_grad():
        schedule = pair[1].embed_timesteps(timesteps)
        single = pair[1].embed_timesteps(timesteps[2:3])
    assert relative_error(schedule.index(2).modulation, single.modulation) <= BATCH_TOLERANCE
    assert schedule.modulation.dtype == schedule.embedded.dtype == torch.float32


def test_bfloat16_is_at_least_as_close_to_float32_as_the_reference():
    # Wide enough that errors of single roundings average out.
    reference = make_reference({**TINY, "attention_head_dim": 128, "ffn_dim": 512})
    inputs = make_inputs(2, 3)
    latents, timesteps, prompts, context = inputs
    truth = run_reference(reference, *inputs)
    ours = make_ours(reference).to(torch.bfloat16)
    error = relative_error(run_ours(ours, *inputs), truth)
    torch.nn.Module.to(reference, torch.bfloat16)
    rounded = [prompt.bfloat16() for prompt in prompts]
    with torch.no_grad():
        theirs = torch.cat(
            [
                reference(
                    latents[row : row + 1].bfloat16(),
                    timesteps[row : row + 1],
                    torch.nn.functional.pad(prompt, (0, 0, 0, 512 - len(prompt)))[None],
                    control_hidden_states=context[row : row + 1].bfloat16(),
                    return_dict=False,
                )[0]
                for row, prompt in enumerate(rounded)
            ]
        )
    assert error <= 1.05 * relative_error(theirs.float(), truth)


def test_gradients_reach_every_parameter(pair):
    ours = pair[1]
    latents, timesteps, prompts, context = make_inputs(2, 2)
    run = ours(
        latents,
        ours.embed_timesteps(timesteps),
        ours.encode_text(prompts),
        ours.encode_context(context),
    )
    run.square().mean().backward()
    without = [
        name
        for name, parameter in ours.named_parameters()
        # The bias of a key raises all scores alike, which softmax does not see.
        if parameter.grad is None or (not parameter.grad.any() and not name.endswith("k.bias"))
    ]
    ours.zero_grad()
    assert without == []


def test_blocks_are_called_in_the_announced_order(pair):
    ours = pair[1]
    called = []
    hooks = [
        block.register_forward_hook(lambda block, *_: called.append(block))
        for block in ours.blocks_in_call_order()
    ]
    run_ours(ours, *make_inputs(1, 1))
    for hook in hooks:
        hook.remove()
    assert called == ours.blocks_in_call_order()
    assert len(called) == TINY["num_layers"] + len(TINY["vace_layers"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(1, 15, 2, 4, 6)}, r"latents has shape \[1, 15, 2, 4, 6\]"),
        ({"latents": torch.zeros(1, 16, 2, 3, 6)}, r"latents of \[2, 3, 6\] do not divide"),
        ({"latents": torch.zeros(1, 16, 4, 6)}, r"latents has shape \[1, 16, 4, 6\]"),
        ({"latents": torch.zeros(1, 16, 3, 4, 6)}, r"context has tokens \[1, 12, 24\]"),
        ({"context": torch.zeros(1, 95, 2, 4, 6)}, r"context has shape \[1, 95, 2, 4, 6\]"),
        ({"timesteps": torch.zeros(2)}, "1 latents with 2 timesteps and 1 texts"),
        ({"prompts": [torch.zeros(1, TEXT_DIM)] * 2}, "1 latents with 1 timesteps and 2 texts"),
        ({"prompts": [torch.zeros(513, TEXT_DIM)]}, "a prompt has 513 tokens, expected at most"),
        ({"prompts": [torch.zeros(1, 23)]}, "a prompt has 23 channels, expected 24"),
        ({"scales": torch.ones(3)}, r"scales has shape \[3\], expected \[2\] or \[1, 2\]"),
    ],
)
def test_inputs_that_do_not_fit_are_named(pair, change, message):
    names = ("latents", "timesteps", "prompts", "context")
    inputs = dict(zip(names, make_inputs(1, 2), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        run_ours(pair[1], **inputs)
