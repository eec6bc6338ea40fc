"""Every naming form leads to the original names, completely and without collisions."""

from __future__ import annotations

import pytest
import torch

from models.wan.transformer_config import WanVaceConfig, expected_shapes
from models.wan.transformer_names import to_diffusers, to_original
from tests.models.wan.tiny_transformer import make_reference


def test_diffusers_names_map_one_to_one_onto_the_original_ones():
    reference = make_reference()
    names = list(reference.state_dict())
    config = WanVaceConfig.from_json(dict(reference.config))
    assert sorted(to_original(name) for name in names) == sorted(expected_shapes(config))


def test_original_names_lead_back_to_those_of_diffusers():
    for name in make_reference().state_dict():
        assert to_diffusers(to_original(name)) == name


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_original_names_stay_and_lose_their_prefix(prefix):
    for name in expected_shapes(WanVaceConfig()):
        assert to_original(prefix + name) == name


def test_the_affine_norm_is_the_one_before_cross_attention():
    # diffusers counts it second and the original release third.
    reference = make_reference()
    affine = [
        name
        for name, module in reference.blocks[0].named_children()
        if isinstance(module, torch.nn.LayerNorm) and module.elementwise_affine
    ]
    assert affine == ["norm2"]
    assert to_original("blocks.0.norm2.weight") == "blocks.0.norm3.weight"


@pytest.mark.parametrize("name", ["alphas", "blocks.0", "blocks.1.extra", "img_emb.proj.0.weight"])
def test_unknown_names_stay(name):
    assert to_original(name) == name
