"""The Sana transformer against diffusers' on the same random weights, and against itself."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import SanaTransformer2DModel

from models.errors import UnsupportedCheckpoint
from models.sana.embeddings import position_embedding
from models.sana.transformer import (
    SanaTransformer,
    SanaTransformerConfig,
    TextConditioning,
    TimeModulation,
)

TINY = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "num_layers": 3,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 24,
    "sample_size": 8,
}
VARIANTS = {
    "plain": {},
    "qk norm": {"qk_norm": "rms_norm_across_heads"},
    "guidance": {"guidance_embeds": True},
    "guidance and qk norm": {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},
    "positions": {"interpolation_scale": 1.0},
    "stretched positions": {"interpolation_scale": 2.0},
    "attention bias": {"attention_bias": True},
    "other widths": {"mlp_ratio": 3.0, "out_channels": 6, "norm_eps": 1e-5},
    "patches of two": {"patch_size": 2, "interpolation_scale": 1.0, "out_channels": 4},
}
# Parity in float32 is limited by the order of summation alone.
TOLERANCE = 1e-5
# A batch of another size picks other kernels, which sum in another order.
BATCH_TOLERANCE = 2e-6


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return ((value.double() - truth.double()).norm() / truth.double().norm()).item()


def make_pair(**overrides) -> tuple[SanaTransformer2DModel, SanaTransformer]:
    torch.manual_seed(0)
    reference = SanaTransformer2DModel(**{**TINY, **overrides}).eval()
    for parameter in reference.parameters():
        # Norm weights start at one and biases at zero: give every parameter something to get wrong.
        parameter.data += 0.05 * torch.randn_like(parameter)
    ours = SanaTransformer(SanaTransformerConfig.from_json(dict(reference.config))).eval()
    ours.load_state_dict(reference.state_dict())
    return reference, ours


def make_inputs(config: SanaTransformerConfig, batch: int, height: int = 8, width: int = 8):
    generator = torch.Generator().manual_seed(batch * 1000 + height * 10 + width)
    latents = torch.randn(batch, config.in_channels, height, width, generator=generator)
    timesteps = torch.rand(batch, generator=generator) * 1000
    guidance = torch.rand(batch, generator=generator) * 0.5 if config.guidance_embeds else None
    embeds = torch.randn(batch, 11, config.caption_channels, generator=generator)
    mask = torch.rand(batch, 11, generator=generator) > 0.4
    mask[:, 0] = True
    return latents, timesteps, guidance, embeds, mask


def run_reference(model, latents, timesteps, guidance, embeds, mask):
    dtype = model.dtype
    with torch.no_grad():
        return model(
            latents.to(dtype),
            embeds.to(dtype),
            timesteps,
            guidance=guidance,
            encoder_attention_mask=mask.int(),
            return_dict=False,
        )[0]


def run_ours(model, latents, timesteps, guidance, embeds, mask):
    with torch.no_grad():
        time = model.embed_timesteps(timesteps, guidance)
        return model(latents, time, model.encode_text(embeds, mask))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_have_the_published_names_and_shapes(variant):
    reference, ours = make_pair(**VARIANTS[variant])
    shapes = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("batch", "height", "width"), [(1, 8, 8), (2, 8, 8), (3, 6, 10), (2, 14, 2)]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_output_equals_the_reference(variant, batch, height, width):
    reference, ours = make_pair(**VARIANTS[variant])
    inputs = make_inputs(ours.config, batch, height, width)
    output = run_ours(ours, *inputs)
    assert output.shape == (batch, ours.config.out_channels, height, width)
    assert relative_error(output, run_reference(reference, *inputs)) <= TOLERANCE


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (3, 1)])
def test_odd_sizes_equal_the_reference(height, width):
    reference, ours = make_pair(interpolation_scale=1.0)
    inputs = make_inputs(ours.config, 2, height, width)
    assert relative_error(run_ours(ours, *inputs), run_reference(reference, *inputs)) <= TOLERANCE


def test_a_shared_timestep_equals_the_same_timestep_per_sample():
    _, ours = make_pair(interpolation_scale=1.0)
    latents, timesteps, _, embeds, mask = make_inputs(ours.config, 3)
    with torch.no_grad():
        text = ours.encode_text(embeds, mask)
        shared = ours(latents, ours.embed_timesteps(timesteps[:1]), text)
        repeated = ours(latents, ours.embed_timesteps(timesteps[:1].expand(3)), text)
    assert relative_error(shared, repeated) <= BATCH_TOLERANCE


@pytest.mark.parametrize("variant", ["plain", "guidance and qk norm", "positions"])
def test_members_at_different_timesteps_equal_their_solo_runs(variant):
    _, ours = make_pair(**VARIANTS[variant])
    inputs = make_inputs(ours.config, 4)
    together = run_ours(ours, *inputs)
    for i in range(4):
        alone = run_ours(ours, *(None if x is None else x[i : i + 1] for x in inputs))
        assert relative_error(together[i : i + 1], alone) <= BATCH_TOLERANCE


def test_a_schedule_embedded_at_once_gives_each_step_its_own_modulation():
    _, ours = make_pair()
    schedule = torch.tensor([999.0, 700.5, 3.0])
    with torch.no_grad():
        whole = ours.embed_timesteps(schedule)
        for i, timestep in enumerate(schedule):
            alone = ours.embed_timesteps(timestep[None])
            assert relative_error(whole.index(i).modulation, alone.modulation) <= BATCH_TOLERANCE
            assert relative_error(whole.index(i).embedded, alone.embedded) <= BATCH_TOLERANCE
    picked = whole.index([2, 0, 2])
    joined = TimeModulation.cat([whole.index(2), whole.index(0), whole.index(-1)])
    assert torch.equal(picked.modulation, joined.modulation)
    assert torch.equal(picked.embedded, joined.embedded)
    with pytest.raises(IndexError, match="row 3 of 3"):
        whole.index(3)


def test_masked_tokens_are_dropped_wherever_they_are():
    _, ours = make_pair(qk_norm="rms_norm_across_heads")
    latents, timesteps, _, embeds, _ = make_inputs(ours.config, 1)
    mask = torch.zeros(1, 11, dtype=torch.bool)
    mask[0, [1, 4, 9]] = True
    with torch.no_grad():
        time = ours.embed_timesteps(timesteps)
        text = ours.encode_text(embeds, mask)
        assert text.lengths == (3,)
        assert text.key_values.shape[3] == 3
        masked = ours(latents, time, text)
        assert torch.equal(masked, ours(latents, time, ours.encode_text(embeds[:, [1, 4, 9]])))


def test_padding_may_hold_anything():
    _, ours = make_pair()
    latents, timesteps, _, embeds, mask = make_inputs(ours.config, 3)
    clean = run_ours(ours, latents, timesteps, None, embeds, mask)
    dirty = embeds.masked_fill(~mask[..., None], float("nan"))
    assert torch.equal(run_ours(ours, latents, timesteps, None, dirty, mask), clean)


def test_joined_texts_of_different_lengths_equal_one_encoding():
    _, ours = make_pair(qk_norm="rms_norm_across_heads")
    latents, timesteps, _, embeds, _ = make_inputs(ours.config, 3)
    lengths = (4, 11, 7)
    mask = torch.arange(11) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        parts = [ours.encode_text(embeds[i : i + 1], mask[i : i + 1]) for i in range(3)]
        joined, at_once = TextConditioning.cat(parts), ours.encode_text(embeds, mask)
        assert joined.lengths == at_once.lengths == lengths
        assert torch.equal(joined.bias, at_once.bias)
        for i, n in enumerate(lengths):
            assert torch.equal(joined.key_values[i, :, :, :n], parts[i].key_values[0])
            assert not joined.key_values[i, :, :, n:].any()
        time = ours.embed_timesteps(timesteps)
        output = ours(latents, time, joined)
        for i in range(3):
            alone = ours(latents[i : i + 1], time.index(i), parts[i])
            assert relative_error(output[i : i + 1], alone) <= BATCH_TOLERANCE
    again = joined.index([2, 0, 2])
    assert again.lengths == (7, 4, 7)
    assert torch.equal(
        again.key_values, TextConditioning.cat([parts[2], parts[0], parts[2]]).key_values
    )
    assert joined.index([1, 1]).bias is None


def test_position_embeddings_are_remembered_and_usable_after_inference_mode():
    _, ours = make_pair(interpolation_scale=1.0)
    inputs = make_inputs(ours.config, 1, 9, 4)
    position_embedding.cache_clear()
    with torch.inference_mode():
        run_ours(ours, *inputs)
        run_ours(ours, *inputs)
    assert position_embedding.cache_info().hits == 1
    latents, timesteps, _, embeds, mask = inputs
    ours(latents, ours.embed_timesteps(timesteps), ours.encode_text(embeds, mask)).sum().backward()


@pytest.mark.parametrize("variant", ["plain", "guidance and qk norm", "positions"])
def test_gradients_equal_the_reference(variant):
    reference, ours = make_pair(**VARIANTS[variant])
    latents, timesteps, guidance, embeds, mask = make_inputs(ours.config, 3)
    target = latents.flip(0)
    output = reference(
        latents, embeds, timesteps, guidance=guidance, encoder_attention_mask=mask.int()
    ).sample
    (output - target).square().mean().backward()
    embeds = embeds.requires_grad_()
    time = ours.embed_timesteps(timesteps, guidance)
    output = ours(latents, time, ours.encode_text(embeds, mask))
    (output - target).square().mean().backward()
    assert embeds.grad.abs().sum() > 0
    expected = dict(reference.named_parameters())
    scale = max(parameter.grad.norm() for parameter in expected.values())
    for name, parameter in ours.named_parameters():
        # Softmax does not see a constant added to every key: that gradient is pure rounding.
        error = (parameter.grad - expected[name].grad).norm()
        assert error <= 1e-5 * expected[name].grad.norm() + 1e-7 * scale, name


def test_training_under_autocast_stays_close_to_float32():
    _, ours = make_pair(qk_norm="rms_norm_across_heads", interpolation_scale=1.0)
    latents, timesteps, _, embeds, mask = make_inputs(ours.config, 3)
    full = run_ours(ours, latents, timesteps, None, embeds, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        time = ours.embed_timesteps(timesteps)
        output = ours(latents, time, ours.encode_text(embeds, mask))
    assert output.dtype == torch.float32
    assert relative_error(output, full) <= 2e-2
    output.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in ours.parameters())


@pytest.mark.parametrize("variant", ["plain", "guidance and qk norm", "positions"])
def test_bfloat16_loses_no_more_than_the_reference_does(variant):
    # Wide enough for the average of many roundings to mean something.
    wide = {
        "attention_head_dim": 32,
        "num_cross_attention_heads": 4,
        "cross_attention_head_dim": 32,
    }
    reference, ours = make_pair(**wide, cross_attention_dim=128, **VARIANTS[variant])
    ours_error, reference_error = 0.0, 0.0
    exact = [run_reference(reference, *make_inputs(ours.config, n)) for n in (2, 3, 4)]
    reference, ours = reference.bfloat16(), ours.bfloat16()
    for n, truth in zip((2, 3, 4), exact, strict=True):
        inputs = make_inputs(ours.config, n)
        output = run_ours(ours, *inputs)
        assert output.dtype == torch.float32  # the dtype of the latents
        ours_error += relative_error(output, truth)
        reference_error += relative_error(run_reference(reference, *inputs), truth)
    assert reference_error > 1e-3
    assert ours_error <= 1.1 * reference_error


def test_float16_overflow_in_self_attention_saturates():
    _, ours = make_pair()
    ours.half()
    inputs = make_inputs(ours.config, 1)
    ours.transformer_blocks[0].attn1.to_out[0].bias.data.fill_(65504.0)
    ours.transformer_blocks[0].attn1.to_out[0].weight.data.fill_(60000.0)
    x = inputs[0].flatten(2).transpose(1, 2).half().repeat(1, 1, 4)
    with torch.no_grad():
        out = ours.transformer_blocks[0].attn1(x)
    assert out.isfinite().all()
    assert out.max() == 65504.0


def test_mismatched_inputs_are_refused_by_name():
    _, ours = make_pair(patch_size=2)
    latents, timesteps, _, embeds, mask = make_inputs(ours.config, 3)
    time, text = ours.embed_timesteps(timesteps), ours.encode_text(embeds, mask)
    with pytest.raises(ValueError, match="7 x 8 do not divide by 2"):
        ours(latents[:, :, 1:], time, text)
    with pytest.raises(ValueError, match="3 latents with 2 timesteps and 3 texts"):
        ours(latents, time.index([0, 1]), text)
    with pytest.raises(ValueError, match="1 latents with 1 timesteps and 3 texts"):
        ours(latents[:1], time.index(0), text)
    with pytest.raises(ValueError, match="prompt 1 keeps no token"):
        ours.encode_text(embeds, mask & torch.tensor([[True], [False], [True]]))
    with pytest.raises(ValueError, match="23 channels, expected 24"):
        ours.encode_text(embeds[..., 1:], mask)
    with pytest.raises(ValueError, match="has no guidance"):
        ours.embed_timesteps(timesteps, timesteps)
    with pytest.raises(ValueError, match="do not fit"):
        TextConditioning.of(text.key_values, [1, 2, 3])
    _, distilled = make_pair(guidance_embeds=True)
    with pytest.raises(ValueError, match="needs a guidance"):
        distilled.embed_timesteps(timesteps)


def test_config_json_of_a_release_is_read():
    text = json.dumps(
        {
            "_class_name": "SanaTransformer2DModel",
            "_diffusers_version": "0.32.0",
            "attention_bias": False,
            "attention_head_dim": 32,
            "caption_channels": 2304,
            "cross_attention_dim": 1152,
            "cross_attention_head_dim": 72,
            "dropout": 0.0,
            "in_channels": 32,
            "mlp_ratio": 2.5,
            "norm_elementwise_affine": False,
            "norm_eps": 1e-06,
            "num_attention_heads": 36,
            "num_cross_attention_heads": 16,
            "num_layers": 28,
            "out_channels": None,
            "patch_size": 1,
            "sample_size": 16,
        }
    )
    config = SanaTransformerConfig.from_json(json.loads(text))
    assert config.inner_dim == 1152
    assert config.out_channels == 32
    assert config.qk_norm is None
    assert config == replace(config, num_layers=28, sample_size=16, interpolation_scale=None)


def test_defaults_are_those_of_the_format():
    config = SanaTransformerConfig.from_json({})
    assert config == SanaTransformerConfig()
    reference = dict(SanaTransformer2DModel(**TINY).config)
    for name in ("mlp_ratio", "norm_eps", "guidance_embeds_scale", "timestep_scale", "patch_size"):
        assert getattr(config, name) == reference[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "SanaVideoTransformer3DModel"}, "SanaVideoTransformer3DModel"),
        ({"rope_max_seq_len": 1024}, "rope_max_seq_len: unknown option 1024"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine"),
        ({"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm'"),
        ({"cross_attention_dim": 48}, "cross_attention_dim is 48, expected 32"),
        ({"cross_attention_dim": None}, "cross_attention_dim is None, expected 32"),
        ({"num_cross_attention_heads": 3}, "is 48, expected 32"),
        ({"num_layers": 0}, "num_layers is 0, expected a positive integer"),
        ({"num_layers": "3"}, "num_layers is '3', expected a positive integer"),
        ({"num_layers": True}, "num_layers is True, expected a positive integer"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio is nan, expected a positive number"),
        ({"attention_bias": 1}, "attention_bias is 1, expected bool"),
        ({"sample_size": None}, "sample_size is None, expected a positive integer"),
    ],
)
def test_configs_that_cannot_be_computed_are_refused_by_key(change, message):
    with pytest.raises(UnsupportedCheckpoint, match=message):
        SanaTransformerConfig.from_json({**TINY, **change})
