"""From names to specs: derived limits, overrides, and one precise line for everything wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.catalogue import BUNDLED, OVERRIDES_FILE, describe, discover
from models.errors import CheckpointError, UnsupportedCheckpoint
from models.sana.checkpoint import SanaCheckpoint
from models.sana.transformer import SanaTransformer
from models.weights.skeleton import skeleton
from tests.models.tiny import edit_json


def override(folder: Path, **fields: Any) -> None:
    (folder / OVERRIDES_FILE).write_text(json.dumps(fields))


def test_a_folder_is_described_by_its_own_configuration(tiny_checkpoint: Path) -> None:
    (spec,) = discover([str(tiny_checkpoint)])
    assert spec.id == "tiny-sana"
    assert spec.family == "sana"
    assert spec.source == tiny_checkpoint.resolve()
    # sample_size 4, 32 pixels a latent
    assert (spec.width.minimum, spec.width.default, spec.width.maximum) == (64, 128, 256)
    assert spec.height == spec.width
    assert spec.width.multiple_of == 32
    assert spec.samplers == ("dpm-solver++", "flow-euler", "unipc")


def test_sizes_keep_to_whole_patches(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "transformer" / "config.json", patch_size=2)
    width = describe(tiny_copy).width
    assert (width.minimum, width.default, width.multiple_of) == (64, 128, 64)


RELEASED = {
    "0.6B": (36, 28, 16, 72, None, 0.592),
    "1.6B": (70, 20, 20, 112, None, 1.604),
    "1.5 1.6B": (70, 20, 20, 112, "rms_norm_across_heads", 1.604),
    "1.5 4.8B": (70, 60, 20, 112, "rms_norm_across_heads", 4.72),
}
"""Heads, layers, cross-attention heads and their size, norm, billions of parameters."""


@pytest.mark.parametrize("name", RELEASED)
def test_released_configurations_are_read_and_have_the_published_size(
    tiny_copy: Path, name: str
) -> None:
    heads, layers, cross_heads, cross_dim, qk_norm, billions = RELEASED[name]
    released = {
        "num_attention_heads": heads,
        "attention_head_dim": 32,
        "num_layers": layers,
        "num_cross_attention_heads": cross_heads,
        "cross_attention_head_dim": cross_dim,
        "cross_attention_dim": heads * 32,
        "caption_channels": 2304,
        "dropout": 0.0,
        "interpolation_scale": None,
        "qk_norm": qk_norm,
        "sample_size": 32,
    }
    edit_json(tiny_copy / "transformer" / "config.json", **released)
    assert describe(tiny_copy).width.default == 1024
    with skeleton():
        transformer = SanaTransformer(SanaCheckpoint.read(tiny_copy).transformer)
    count = sum(parameter.numel() for parameter in transformer.parameters())
    assert count / 1e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.parametrize(("sample_size", "scale"), [(64, 1.0), (128, 2.0)])
def test_sizes_beyond_1024_come_with_their_position_scale(
    tiny_copy: Path, sample_size: int, scale: float
) -> None:
    edit_json(
        tiny_copy / "transformer" / "config.json",
        sample_size=sample_size,
        interpolation_scale=scale,
    )
    scheduler = tiny_copy / "scheduler" / "scheduler_config.json"
    # Published files say so, in the JSON of Python.
    edit_json(scheduler, lambda_min_clipped=float("-inf"))
    assert "-Infinity" in scheduler.read_text()
    assert describe(tiny_copy).width.default == sample_size * 32
    assert SanaCheckpoint.read(tiny_copy).transformer.interpolation_scale == scale


def test_the_checkpoint_s_own_sampler_is_the_default(tiny_copy: Path) -> None:
    path = tiny_copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}))
    index = json.loads((tiny_copy / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (tiny_copy / "model_index.json").write_text(json.dumps(index))
    assert describe(tiny_copy).samplers == ("flow-euler", "dpm-solver++", "unipc")


def test_specs_come_in_the_order_of_their_names(tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_checkpoint, tmp_path / "another")
    assert [spec.id for spec in discover([str(other), str(tiny_checkpoint)])] == [
        "another",
        "tiny-sana",
    ]
    assert discover([]) == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Sana_600M 512px", "sana_600m-512px"),
        ("..hidden", "hidden"),
        ("ÄÖ model", "model"),
        ("x" * 100, "x" * 64),
    ],
)
def test_a_folder_name_becomes_a_valid_id(
    tiny_checkpoint: Path, tmp_path: Path, name: str, expected: str
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / name)
    assert describe(folder).id == expected


def test_a_folder_name_without_a_usable_character_asks_for_an_id(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "模型")
    with pytest.raises(CheckpointError, match=r"id: String should match pattern"):
        describe(folder)
    override(folder, id="named")
    assert describe(folder).id == "named"


def test_overrides_replace_fields_and_entries_of_fields(tiny_copy: Path) -> None:
    override(
        tiny_copy,
        id="renamed",
        description="A test.",
        width={"maximum": 160},
        guidance_scale={"default": 3.0, "minimum": 1.0, "maximum": 5.0},
        samplers=["flow-euler"],
        max_prompt_chars=99,
        variant="bf16",
    )
    spec = describe(tiny_copy)
    assert (spec.id, spec.description) == ("renamed", "A test.")
    assert (spec.width.minimum, spec.width.maximum, spec.height.maximum) == (64, 160, 256)
    assert spec.guidance_scale.default == 3.0
    assert spec.samplers == ("flow-euler",)
    assert (spec.max_prompt_chars, spec.variant) == (99, "bf16")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"colour": 1}, "unknown field 'colour'"),
        ({"source": "/"}, "unknown field 'source'"),
        ({"width": 256}, "width: .*found 256"),
        ({"width": {"default": 1000}}, "width: .*default 1000 is outside 64..256"),
        ({"width": {"multiple_of": 16}}, "width.multiple_of: 16 is not a multiple of 32"),
        ({"width": {"multiple_of": 0}}, "width.multiple_of: .*greater than or equal to 1"),
        ({"width": {"minimum": 0}}, "width.minimum: .*greater than or equal to 1"),
        ({"num_inference_steps": {"minimum": 0}}, "num_inference_steps.minimum: .*equal to 1"),
        ({"num_images": {"default": 0, "minimum": 1, "maximum": 2}}, "num_images: .*default 0"),
        ({"samplers": ["euler"]}, "samplers: 'euler' is unknown, supported: dpm-solver"),
        ({"samplers": []}, "samplers: "),
        ({"id": "Upper Case"}, "id: String should match pattern"),
        ({"task": "text-to-video"}, "task: "),
    ],
)
def test_a_bad_override_names_file_and_field(
    tiny_copy: Path, fields: dict[str, Any], message: str
) -> None:
    override(tiny_copy, **fields)
    with pytest.raises(CheckpointError, match=rf"{OVERRIDES_FILE}: {message}") as caught:
        describe(tiny_copy)
    assert "\n" not in str(caught.value)


def test_broken_overrides_are_named(tiny_copy: Path) -> None:
    (tiny_copy / OVERRIDES_FILE).write_text("{")
    with pytest.raises(CheckpointError, match=rf"{OVERRIDES_FILE}: not valid JSON"):
        describe(tiny_copy)


def test_a_damaged_configuration_leaves_the_other_models_in_service(
    tiny_copy: Path, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tiny_copy / "transformer" / "config.json").write_text("{")
    sound = tiny_checkpoint.resolve()
    assert [spec.source for spec in discover([str(tiny_copy), str(sound)])] == [sound]
    assert re.search(r"cannot be served: .*transformer.config\.json: not valid JSON", caplog.text)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        discover([str(tiny_copy)])


def test_an_unknown_name_is_told_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'nowhere' is neither a bundled model \(sana"):
        discover(["nowhere"])
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="nor a checkpoint folder"):
        discover([str(file)])


def test_a_folder_without_a_model_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_index\.json: no such file"):
        discover([str(tmp_path)])


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_broken_model_index_is_refused(tiny_copy: Path, content: str) -> None:
    (tiny_copy / "model_index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model_index\.json: "):
        describe(tiny_copy)


@pytest.mark.parametrize("found", ["FluxPipeline", "SanaSprintPipeline", None, 3])
def test_another_pipeline_class_is_refused_with_what_is_supported(
    tiny_copy: Path, found: Any
) -> None:
    edit_json(tiny_copy / "model_index.json", _class_name=found)
    expected = re.escape(f"model_index.json: pipeline is {found!r}, supported: SanaPipeline")
    with pytest.raises(UnsupportedCheckpoint, match=expected):
        describe(tiny_copy)


def test_another_component_class_is_refused(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    with pytest.raises(UnsupportedCheckpoint, match=r"vae is 'AutoencoderKL', supported: Auto"):
        describe(tiny_copy)
    edit_json(tiny_copy / "model_index.json", vae=None)
    with pytest.raises(UnsupportedCheckpoint, match=r"vae is None"):
        describe(tiny_copy)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("prediction_type", "epsilon"),
        ("use_flow_sigmas", False),
        ("solver_order", 3),
        ("use_karras_sigmas", True),
        ("final_sigmas_type", "sigma_min"),
    ],
)
def test_a_schedule_that_is_not_computed_is_refused(
    tiny_copy: Path, option: str, value: Any
) -> None:
    edit_json(tiny_copy / "scheduler" / "scheduler_config.json", **{option: value})
    message = rf"scheduler_config\.json: {option} is {value!r}, supported: "
    with pytest.raises(UnsupportedCheckpoint, match=message):
        describe(tiny_copy)


@pytest.mark.parametrize("shift", [0, -1.0, "3", None, True, 1e9])
def test_a_shift_out_of_range_is_refused(tiny_copy: Path, shift: Any) -> None:
    edit_json(tiny_copy / "scheduler" / "scheduler_config.json", flow_shift=shift)
    with pytest.raises(CheckpointError, match=rf"flow_shift is {re.escape(repr(shift))}, expected"):
        describe(tiny_copy)


def test_a_transformer_option_that_is_not_computed_names_its_file(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "transformer" / "config.json", qk_norm="layer_norm")
    with pytest.raises(UnsupportedCheckpoint, match=r"transformer.config\.json: qk_norm"):
        describe(tiny_copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 16}, "latent_channels is 16, supported: 32"),
        ({"decoder_act_fns": "gelu"}, "decoder_act_fns is 'gelu'"),
        ({"shift_factor": 0.1}, "shift_factor"),
    ],
)
def test_an_autoencoder_that_does_not_fit_names_its_file(
    tiny_copy: Path, changes: dict[str, Any], message: str
) -> None:
    edit_json(tiny_copy / "vae" / "config.json", **changes)
    with pytest.raises(UnsupportedCheckpoint, match=rf"vae.config\.json: .*{message}"):
        describe(tiny_copy)


def test_two_models_of_one_id_are_refused(tiny_checkpoint: Path, tiny_copy: Path) -> None:
    with pytest.raises(CheckpointError, match=r"id 'tiny-sana' is used by both"):
        discover([str(tiny_checkpoint), str(tiny_copy)])
    override(tiny_copy, id="other")
    assert len(discover([str(tiny_checkpoint), str(tiny_copy)])) == 2


@pytest.mark.parametrize("name", BUNDLED)
def test_every_bundled_model_is_described(name: str) -> None:
    (spec,) = discover([name])
    assert spec.id == name
