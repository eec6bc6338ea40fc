"""Our DC-AE against diffusers' AutoencoderDC: same weights, same pictures, same refusals."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderDC as Reference

from models.sana.autoencoder_dc import AutoencoderDC, AutoencoderDCConfig

BOUND = 1e-5
RES = ("ResBlock",)
VIT = ("EfficientViTBlock",)
WIDTHS = (8, 8, 16, 16, 32, 32)

CONFIGURATIONS = {
    "as_the_released_sana_checkpoints": {
        "encoder_block_types": RES * 3 + VIT * 3,
        "decoder_block_types": RES * 3 + VIT * 3,
        "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
        "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
        "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate",
    },
    "as_the_demo": {
        "encoder_block_types": RES * 5 + VIT,
        "decoder_block_types": RES * 5 + VIT,
        "encoder_layers_per_block": (0, 1, 1, 1, 1, 1),
        "decoder_layers_per_block": (0, 1, 2, 3, 1, 2),
        "encoder_qkv_multiscales": ((),) * 6,
        "decoder_qkv_multiscales": ((),) * 6,
    },
    "no_attention": {
        "encoder_layers_per_block": (1,) * 6,
        "decoder_layers_per_block": (1,) * 6,
    },
    "two_scales_without_shortcuts": {
        "encoder_block_types": VIT * 6,
        "decoder_block_types": VIT * 6,
        "encoder_layers_per_block": (1,) * 6,
        "decoder_layers_per_block": (1,) * 6,
        "encoder_qkv_multiscales": ((3, 5),) * 6,
        "decoder_qkv_multiscales": ((3, 5),) * 6,
        "encoder_out_shortcut": False,
        "decoder_in_shortcut": False,
        "decoder_conv_act_fn": "silu",
    },
    "batch_norms_and_mixed_activations": {
        "decoder_block_types": RES * 4 + VIT * 2,
        "decoder_layers_per_block": (1,) * 6,
        "encoder_layers_per_block": (1,) * 6,
        "decoder_norm_types": ("batch_norm",) * 3 + ("rms_norm",) * 2 + ("batch_norm",),
        "decoder_act_fns": ("relu", "relu", "silu", "relu", "silu", "silu"),
        "upsample_block_type": "interpolate",
    },
}


def reference(name: str) -> Reference:
    """A tiny reference model whose every parameter and buffer is drawn at random."""
    torch.manual_seed(list(CONFIGURATIONS).index(name))
    model = Reference(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_out_channels=WIDTHS,
        decoder_block_out_channels=WIDTHS,
        **CONFIGURATIONS[name],
    ).eval()
    for tensor_name, tensor in model.state_dict().items():
        if tensor_name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.5 if tensor.ndim == 1 else (tensor[0].numel()) ** -0.5)
    return model


def ours(model: Reference) -> AutoencoderDC:
    built = AutoencoderDC(AutoencoderDCConfig.from_dict(dict(model.config))).eval()
    built.load_state_dict(model.state_dict(), strict=True)
    return built


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    assert result.shape == expected.shape
    return ((result - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 2, 2), (2, 5, 7)])
@torch.no_grad()
def test_decoded_pictures_agree_with_the_reference(
    name: str, batch: int, height: int, width: int
) -> None:
    model = reference(name)
    latents = torch.randn(batch, 8, height, width)
    assert relative_error(ours(model).decode(latents), model.decode(latents).sample) <= BOUND


@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.no_grad()
def test_encoded_latents_agree_with_the_reference(name: str) -> None:
    model = reference(name)
    pictures = torch.randn(2, 3, 96, 160)
    assert relative_error(ours(model).encode(pictures), model.encode(pictures).latent) <= BOUND


@torch.no_grad()
def test_members_of_a_batch_are_decoded_as_if_alone() -> None:
    model = ours(reference("as_the_demo"))
    latents = torch.randn(3, 8, 3, 4)
    alone = torch.cat([model.decode(one) for one in latents.split(1)])
    assert relative_error(model.decode(latents), alone) <= BOUND


@torch.no_grad()
def test_in_bfloat16_our_error_is_no_larger_than_the_references() -> None:
    model = reference("as_the_released_sana_checkpoints")
    built = ours(model)
    latents = torch.randn(2, 8, 4, 5)
    exact = model.decode(latents).sample
    theirs = model.bfloat16().decode(latents.bfloat16()).sample.float()
    result = built.bfloat16().decode(latents.bfloat16()).float()
    assert relative_error(result, exact) <= 1.1 * relative_error(theirs, exact)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_parameters_have_the_reference_names_and_shapes(name: str) -> None:
    model = reference(name)
    built = AutoencoderDC(AutoencoderDCConfig.from_dict(dict(model.config)))
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in built.state_dict().items()} == expected


def test_a_missing_and_an_extra_tensor_are_both_refused() -> None:
    model = reference("as_the_demo")
    built = AutoencoderDC(AutoencoderDCConfig.from_dict(dict(model.config)))
    state = model.state_dict()
    state["decoder.surprise"] = state.pop("decoder.norm_out.bias")
    with pytest.raises(RuntimeError, match=r"decoder\.norm_out\.bias[\s\S]*decoder\.surprise"):
        built.load_state_dict(state)


def test_without_its_encoder_it_has_no_encoder_tensors_and_does_not_encode() -> None:
    config = AutoencoderDCConfig.from_dict(dict(reference("as_the_demo").config))
    built = AutoencoderDC(config)
    built.encoder = None
    assert all(name.startswith("decoder.") for name in built.state_dict())
    with pytest.raises(RuntimeError, match=r"encoder .* was dropped"):
        built.encode(torch.zeros(1, 3, 32, 32))


def test_a_picture_off_the_grid_is_refused_with_the_grid() -> None:
    model = ours(reference("as_the_demo"))
    with pytest.raises(ValueError, match="100x64, both must be multiples of 32"):
        model.encode(torch.zeros(1, 3, 64, 100))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_norm_types": "group_norm"}, "decoder_norm_types is 'group_norm'"),
        ({"decoder_norm_types": []}, "decoder_norm_types has 0 entries, must have 6"),
        ({"decoder_block_out_channels": [8] * 5}, "has 5 entries, must have 6"),
        ({"scaling_factor": "0.4"}, "scaling_factor is '0.4', must be above 0"),
        ({"scaling_factor": 0}, "scaling_factor is 0, must be above 0"),
        ({"attention_head_dim": 0}, "attention_head_dim is 0, must be whole, at least 1"),
        ({"in_channels": None}, "in_channels is None"),
        ({"decoder_layers_per_block": [-1] * 6}, "decoder_layers_per_block is .*at least 0"),
        ({"encoder_qkv_multiscales": [["x"]] * 6}, "encoder_qkv_multiscales has 'x', must be odd"),
        ({"encoder_block_types": ["ResBlock"] * 5 + ["Mamba"]}, "encoder_block_types is 'Mamba'"),
        ({"upsample_block_type": "deconv"}, "upsample_block_type is 'deconv'"),
        ({"decoder_conv_act_fn": "gelu"}, "decoder_conv_act_fn is 'gelu'"),
        ({"shift_factor": 0.5}, "'shift_factor'"),
        ({"decoder_layers_per_block": [1, 2]}, "decoder_layers_per_block has 2 entries"),
    ],
)
def test_a_config_that_would_change_the_result_is_refused_by_name(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderDCConfig.from_dict({"_class_name": "AutoencoderDC", **change})


def test_an_empty_config_means_the_documented_defaults() -> None:
    assert AutoencoderDCConfig.from_dict({}) == AutoencoderDCConfig()
    assert AutoencoderDCConfig().spatial_compression_ratio == 32
