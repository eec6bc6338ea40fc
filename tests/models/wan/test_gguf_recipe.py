"""The mixtures: sizes of whole files as published, and which tensor gets what."""

from __future__ import annotations

import pytest

from models.wan.gguf_recipe import tensor_type
from models.wan.transformer_config import WanVaceConfig, expected_shapes
from models.weights.gguf.file_type import FileType
from models.weights.gguf.format import BLOCK, QuantType
from models.weights.gguf.writer import PlannedTensor

# Gigabytes of the published Wan2.1-VACE-14B files, to the digit they are given with.
SIZES = {
    FileType.Q3_K_S: 7.8,
    FileType.Q3_K_M: 8.6,
    FileType.Q4_0: 10.3,
    FileType.Q4_K_S: 10.6,
    FileType.Q4_1: 11.2,
    FileType.Q4_K_M: 11.6,
    FileType.Q5_K_S: 12.3,
    FileType.Q5_0: 12.5,
    FileType.Q5_K_M: 13.0,
    FileType.Q5_1: 13.3,
    FileType.Q6_K: 14.5,
    FileType.Q8_0: 18.7,
    FileType.BF16: 34.7,
}


@pytest.mark.parametrize("file_type", SIZES, ids=lambda file_type: file_type.name)
def test_files_of_the_14b_model_have_their_published_size(file_type):
    shapes = expected_shapes(WanVaceConfig())
    size = sum(
        PlannedTensor(name, shape, tensor_type(file_type, name, shape)).nbytes
        for name, shape in shapes.items()
    )
    assert size / 1e9 == pytest.approx(SIZES[file_type], abs=0.06)


@pytest.mark.parametrize("file_type", FileType, ids=lambda file_type: file_type.name)
def test_every_tensor_gets_a_type_its_rows_fit(file_type):
    for config in (WanVaceConfig(), WanVaceConfig(num_heads=12, ffn_dim=8960, num_layers=30)):
        for name, shape in expected_shapes(config).items():
            type = tensor_type(file_type, name, shape)
            assert shape[-1] % BLOCK[type][0] == 0, name


@pytest.mark.parametrize("file_type", FileType, ids=lambda file_type: file_type.name)
def test_only_matrices_of_the_blocks_are_quantised(file_type):
    plain = {"BF16": QuantType.BF16}.get(file_type.name, QuantType.F16)
    for name, shape in (
        ("blocks.0.modulation", (1, 6, 5120)),
        ("head.modulation", (1, 2, 5120)),
        ("patch_embedding.weight", (5120, 16, 1, 2, 2)),
        ("vace_patch_embedding.weight", (5120, 96, 1, 2, 2)),
        ("blocks.3.self_attn.norm_q.weight", (5120,)),
        ("blocks.3.ffn.0.bias", (13824,)),
        ("blocks.3.ffn.0.weight", (4, 256)),
    ):
        assert tensor_type(file_type, name, shape) == QuantType.F32, name
    for name, shape in (
        ("text_embedding.0.weight", (5120, 4096)),
        ("time_embedding.2.weight", (5120, 5120)),
        ("time_projection.1.weight", (30720, 5120)),
        ("head.head.weight", (64, 5120)),
    ):
        assert tensor_type(file_type, name, shape) == plain, name


@pytest.mark.parametrize(
    ("file_type", "name", "expected"),
    [
        ("Q4_K_M", "blocks.7.self_attn.q.weight", "Q4_K"),
        ("Q4_K_M", "blocks.7.self_attn.v.weight", "Q6_K"),
        ("Q4_K_M", "blocks.7.cross_attn.v.weight", "Q6_K"),
        ("Q4_K_M", "blocks.7.ffn.2.weight", "Q6_K"),
        ("Q4_K_M", "blocks.7.ffn.0.weight", "Q4_K"),
        ("Q4_K_M", "vace_blocks.0.before_proj.weight", "Q4_K"),
        ("Q4_K_M", "vace_blocks.3.after_proj.weight", "Q4_K"),
        ("Q4_K_M", "vace_blocks.3.self_attn.v.weight", "Q6_K"),
        ("Q4_K_S", "blocks.1.cross_attn.v.weight", "Q5_K"),
        ("Q4_K_S", "blocks.2.self_attn.v.weight", "Q4_K"),
        ("Q4_K_S", "vace_blocks.0.self_attn.v.weight", "Q4_K"),
        ("Q4_K_S", "blocks.20.ffn.2.weight", "Q5_K"),
        ("Q3_K_M", "blocks.0.self_attn.v.weight", "Q5_K"),
        ("Q3_K_M", "blocks.1.self_attn.v.weight", "Q4_K"),
        ("Q3_K_M", "blocks.1.ffn.2.weight", "Q4_K"),
        ("Q3_K_L", "blocks.1.self_attn.v.weight", "Q5_K"),
        ("Q3_K_L", "blocks.1.ffn.2.weight", "Q5_K"),
        ("Q3_K_L", "blocks.1.ffn.0.weight", "Q3_K"),
        ("Q3_K_S", "blocks.1.ffn.2.weight", "Q3_K"),
        ("Q2_K", "blocks.1.self_attn.v.weight", "Q3_K"),
        ("Q5_K_M", "blocks.1.ffn.2.weight", "Q6_K"),
        ("Q5_K_S", "blocks.1.ffn.2.weight", "Q5_K"),
        ("Q4_0", "blocks.1.ffn.2.weight", "Q4_1"),
        ("Q5_0", "blocks.1.ffn.2.weight", "Q5_1"),
        ("Q8_0", "blocks.1.self_attn.v.weight", "Q8_0"),
    ],
)
def test_matrices_whose_error_shows_get_more_bits(file_type, name, expected):
    assert tensor_type(FileType[file_type], name, (5120, 5120)) == QuantType[expected]


@pytest.mark.parametrize(
    ("file_type", "columns", "expected"),
    [
        ("Q3_K_S", 192, "Q5_0"),
        ("Q4_K_S", 192, "Q5_0"),
        ("Q5_K_S", 192, "Q5_1"),
        ("Q6_K", 192, "Q8_0"),
        ("Q6_K", 80, "F16"),
        ("Q8_0", 80, "F16"),
    ],
)
def test_rows_of_no_whole_blocks_fall_back(file_type, columns, expected):
    found = tensor_type(FileType[file_type], "blocks.0.self_attn.q.weight", (64, columns))
    assert found == QuantType[expected]
