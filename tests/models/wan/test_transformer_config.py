"""A configuration comes out of shapes or JSON, and says which tensors belong to it."""

from __future__ import annotations

import pytest

from models.errors import CheckpointError, UnsupportedCheckpoint
from models.wan.transformer_config import WanVaceConfig, expected_shapes, infer_config
from tests.models.wan.tiny_transformer import TINY, make_reference, original_weights

VACE_14B = WanVaceConfig()
VACE_1_3B = WanVaceConfig(
    num_heads=12, ffn_dim=8960, num_layers=30, vace_layers=tuple(range(0, 30, 2))
)


@pytest.mark.parametrize("config", [VACE_14B, VACE_1_3B], ids=["14B", "1.3B"])
def test_published_models_are_told_by_their_shapes(config):
    assert infer_config(expected_shapes(config)) == config


@pytest.mark.parametrize(
    ("config", "billions"), [(VACE_14B, 17.34), (VACE_1_3B, 2.15)], ids=["14B", "1.3B"]
)
def test_published_models_have_their_number_of_parameters(config, billions):
    total = 0
    for shape in expected_shapes(config).values():
        size = 1
        for side in shape:
            size *= side
        total += size
    assert total / 1e9 == pytest.approx(billions, abs=0.01)


def test_expected_shapes_are_those_of_the_reference():
    reference = make_reference()
    config = WanVaceConfig.from_json(dict(reference.config))
    found = {name: tuple(tensor.shape) for name, tensor in original_weights(reference).items()}
    assert expected_shapes(config) == found


def test_json_and_shapes_agree_where_shapes_can_tell():
    reference = make_reference({**TINY, "attention_head_dim": 128})
    config = WanVaceConfig.from_json(dict(reference.config))
    assert infer_config(expected_shapes(config)) == config


def test_json_may_limit_the_text():
    config = WanVaceConfig.from_json({"text_len": 32, "num_layers": 40})
    assert config.text_len == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "WanTransformer3DModel"}, "_class_name is 'WanTransformer3DModel'"),
        ({"image_dim": 1280}, "image_dim is 1280, supported: None"),
        ({"qk_norm": None}, "qk_norm is None, supported: 'rms_norm_across_heads'"),
        ({"colour": 1}, "colour: unknown option 1"),
        ({"num_layers": 0}, "num_layers is 0, expected a positive integer"),
        ({"num_layers": True}, "num_layers is True, expected a positive integer"),
        ({"vace_layers": [1, 3]}, r"vace_layers is \[1, 3\], expected rising numbers from 0"),
        ({"vace_layers": [0, 40]}, r"vace_layers is \[0, 40\]"),
        ({"vace_layers": "0"}, "vace_layers is '0', expected a list of integers"),
        ({"patch_size": [2, 2, 2]}, r"patch_size is \[2, 2, 2\], supported: one frame"),
        ({"attention_head_dim": 7}, "attention_head_dim is 7, expected an even number"),
        ({"eps": 0}, "eps is 0, expected a number between 0 and 1"),
    ],
)
def test_unsupported_json_is_refused_by_key(change, message):
    with pytest.raises(UnsupportedCheckpoint, match=message):
        WanVaceConfig.from_json(change)


def without(*parts):
    return lambda shapes: {
        name: shape for name, shape in shapes.items() if not name.startswith(parts)
    }


def having(name, shape):
    return lambda shapes: shapes | {name: shape}


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (without("vace_blocks"), UnsupportedCheckpoint, "without VACE"),
        (without("blocks"), UnsupportedCheckpoint, "VACE blocks only"),
        (lambda shapes: {}, UnsupportedCheckpoint, "no trunk"),
        (
            having("blocks.0.cross_attn.k_img.weight", (1536, 1536)),
            UnsupportedCheckpoint,
            "image conditioning",
        ),
        (without("blocks.29."), CheckpointError, "15 VACE blocks and 29 blocks"),
        (without("patch_embedding.weight"), CheckpointError, "'patch_embedding.weight' is missing"),
        (
            having("patch_embedding.weight", (1536, 64)),
            CheckpointError,
            r"'patch_embedding.weight' has shape \[1536, 64\], expected 5 dimensions",
        ),
        (
            having("blocks.0.self_attn.q.weight", (1500, 1500)),
            CheckpointError,
            "'blocks.0.self_attn.q.weight' has 1500 rows, expected a multiple of 128",
        ),
        (
            having("head.head.weight", (63, 1536)),
            CheckpointError,
            "'head.head.weight' has 63 rows, expected a multiple of 4",
        ),
    ],
)
def test_shapes_of_no_such_model_are_refused(damage, error, message):
    with pytest.raises(error, match=message):
        infer_config(damage(expected_shapes(VACE_1_3B)))
