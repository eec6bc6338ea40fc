"""Loading component folders: what fits loads bit for bit, everything else is refused by name."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from models.errors import CheckpointError, UnsupportedCheckpoint
from models.weights.json_file import read_json_object
from models.weights.safetensors_folder import load_module, read_tensors, weight_files
from models.weights.skeleton import skeleton

CPU = torch.device("cpu")
NAME = "diffusion_pytorch_model.safetensors"


def a_module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))


def on_meta() -> nn.Module:
    with skeleton():
        return a_module()


def load(folder: Path, dtype: torch.dtype = torch.float32, variant: str | None = None) -> nn.Module:
    module = on_meta()
    load_module(module, folder, device=CPU, dtype=dtype, variant=variant)
    return module


def write_shards(folder: Path, state: dict[str, torch.Tensor], suffix: str = "") -> None:
    weight_map = {}
    for number, (name, tensor) in enumerate(state.items(), start=1):
        shard = f"model{suffix}-{number:05}-of-{len(state):05}.safetensors"
        save_file({name: tensor}, folder / shard)
        weight_map[name] = shard
    index = f"model.safetensors.index{suffix}.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
def test_a_single_file_loads_bit_for_bit(tmp_path: Path, stem: str) -> None:
    state = a_module().state_dict()
    save_file(state, tmp_path / f"{stem}.safetensors")
    loaded = load(tmp_path)
    assert loaded.state_dict().keys() == state.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_shards_load_as_one_module(tmp_path: Path) -> None:
    state = a_module().state_dict()
    write_shards(tmp_path, state)
    for name, tensor in load(tmp_path).state_dict().items():
        assert torch.equal(tensor, state[name])


def test_loaded_parameters_are_frozen_and_the_module_evaluates(tmp_path: Path) -> None:
    save_file(a_module().state_dict(), tmp_path / NAME)
    module = load(tmp_path)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_weights_of_the_stored_dtype_stay_in_the_mapped_file(tmp_path: Path) -> None:
    big = nn.Linear(512, 512, bias=False)
    save_file(big.state_dict(), tmp_path / NAME)
    with skeleton():
        module = nn.Linear(512, 512, bias=False)
    load_module(module, tmp_path, device=CPU, dtype=torch.float32)
    address = module.weight.data_ptr()
    mapped = [
        range(*(int(bound, 16) for bound in line.split()[0].split("-")))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(tmp_path / NAME))
    ]
    assert any(address in area for area in mapped)


def test_floating_point_weights_are_cast_and_counters_are_not(tmp_path: Path) -> None:
    def module() -> nn.Module:
        return nn.BatchNorm1d(4)

    save_file(module().state_dict(), tmp_path / NAME)
    with skeleton():
        loaded = module()
    load_module(loaded, tmp_path, device=CPU, dtype=torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in loaded.state_dict().items()}
    assert dtypes["weight"] == dtypes["running_mean"] == torch.bfloat16
    assert dtypes["num_batches_tracked"] == torch.int64


def test_plain_weights_are_taken_unless_a_variant_is_asked_for(tmp_path: Path) -> None:
    plain, half = a_module().state_dict(), a_module().half().state_dict()
    save_file(plain, tmp_path / NAME)
    save_file(half, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(load(tmp_path).state_dict()["0.weight"], plain["0.weight"])
    chosen = load(tmp_path, torch.float16, variant="fp16")
    assert torch.equal(chosen.state_dict()["0.weight"], half["0.weight"])


def test_the_only_variant_is_taken_without_asking(tmp_path: Path) -> None:
    save_file(a_module().state_dict(), tmp_path / "model.bf16.safetensors")
    assert weight_files(tmp_path) == (tmp_path / "model.bf16.safetensors",)


def test_several_variants_without_a_choice_are_refused(tmp_path: Path) -> None:
    for variant in ("fp16", "bf16"):
        save_file(a_module().state_dict(), tmp_path / f"model.{variant}.safetensors")
    with pytest.raises(CheckpointError, match=r"no plain weights.*there: bf16, fp16"):
        weight_files(tmp_path)


def test_a_variant_that_is_not_there_is_refused(tmp_path: Path) -> None:
    save_file(a_module().state_dict(), tmp_path / NAME)
    with pytest.raises(CheckpointError, match=r"no weights of variant 'fp16'.*there: plain"):
        weight_files(tmp_path, "fp16")


@pytest.mark.parametrize("suffix", ["", ".fp16"])
def test_shards_of_two_variants_are_never_mixed(tmp_path: Path, suffix: str) -> None:
    state = a_module().state_dict()
    write_shards(tmp_path, state)
    write_shards(tmp_path, state, ".fp16")
    files = weight_files(tmp_path, suffix[1:] or None)
    assert len(files) == len(state)
    assert all((".fp16" in path.name) == bool(suffix) for path in files)


def test_missing_tensors_are_named_and_counted(tmp_path: Path) -> None:
    save_file({"0.weight": torch.zeros(4, 3)}, tmp_path / NAME)
    with pytest.raises(CheckpointError, match=rf"{NAME}: lacks 2 tensors \('0.bias', '1.weight'\)"):
        load(tmp_path)


def test_many_missing_tensors_are_summed_up(tmp_path: Path) -> None:
    with skeleton():
        module = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(10)))
    save_file({"0.weight": torch.zeros(1, 1)}, tmp_path / NAME)
    with pytest.raises(CheckpointError, match=r"lacks 9 tensors \(.*'3.weight' and 6 more\)"):
        load_module(module, tmp_path, device=CPU, dtype=torch.float32)


def test_an_unexpected_tensor_is_named(tmp_path: Path) -> None:
    save_file({**a_module().state_dict(), "extra": torch.zeros(1)}, tmp_path / NAME)
    with pytest.raises(CheckpointError, match=r"holds 1 tensor \('extra'\)"):
        load(tmp_path)


def test_a_part_left_out_is_checked_but_not_loaded(tmp_path: Path) -> None:
    state = a_module().state_dict()

    def load_first(state: dict[str, torch.Tensor]) -> nn.Module:
        save_file(state, tmp_path / NAME)
        module = on_meta()
        load_module(module, tmp_path, device=CPU, dtype=torch.float32, left_out=("1.",))
        return module

    devices = {name: tensor.device.type for name, tensor in load_first(state).state_dict().items()}
    assert devices == {"0.weight": "cpu", "0.bias": "cpu", "1.weight": "meta"}
    with pytest.raises(CheckpointError, match=r"holds 1 tensor \('1.bias'\)"):
        load_first({**state, "1.bias": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"'1.weight' has shape \[5\]"):
        load_first({**state, "1.weight": torch.zeros(5)})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor \('1.weight'\)"):
        load_first({name: tensor for name, tensor in state.items() if name != "1.weight"})


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_another_kind_of_number_names_the_tensor(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({**a_module().state_dict(), "0.bias": torch.zeros(4, dtype=dtype)}, tmp_path / NAME)
    with pytest.raises(CheckpointError, match=rf"'0.bias' holds {dtype}, which is no form of"):
        load(tmp_path)


def test_four_bit_floats_are_refused_by_name(tmp_path: Path) -> None:
    packed = torch.zeros(4, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    save_file({"0.weight": packed}, tmp_path / NAME)
    message = f"{tmp_path / NAME}: tensor '0.weight' holds 4-bit floats, expected 8 bits or more"
    with pytest.raises(UnsupportedCheckpoint, match=re.escape(message)):
        list(read_tensors(tmp_path / NAME))


def test_a_shape_mismatch_names_both_shapes(tmp_path: Path) -> None:
    save_file({**a_module().state_dict(), "0.bias": torch.zeros(5)}, tmp_path / NAME)
    with pytest.raises(CheckpointError, match=r"'0.bias' has shape \[5\], .* asks for \[4\]"):
        load(tmp_path)


def test_a_tensor_stored_twice_is_refused(tmp_path: Path) -> None:
    state = a_module().state_dict()
    write_shards(tmp_path, state)
    save_file({"0.weight": state["0.weight"], "0.bias": state["0.bias"]}, tmp_path / NAME)
    first = next(tmp_path.glob("model-00001*"))
    save_file({"0.weight": state["0.weight"], "0.bias": state["0.bias"]}, first)
    (tmp_path / NAME).unlink()
    with pytest.raises(CheckpointError, match=r"tensor '0.bias' is stored twice"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors", 7, ""]
)
def test_an_index_entry_outside_the_folder_is_refused(tmp_path: Path, name: object) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"0.weight": name}}))
    with pytest.raises(CheckpointError, match=r"'0.weight' points outside the folder"):
        load(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, a_module().state_dict())
    shard = next(tmp_path.glob("*-00002-of*"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=re.escape(shard.name)):
        load(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_an_index_without_shards_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="has no 'weight_map'"):
        load(tmp_path)


def test_a_folder_without_weights_and_no_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"no plain weights in safetensors form"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "nowhere")


SOUND = save({"0.weight": torch.ones(4, 3), "0.bias": torch.ones(4), "1.weight": torch.ones(2, 4)})


@given(length=st.integers(0, len(SOUND) - 1))
@settings(deadline=None, max_examples=150)
def test_a_truncated_file_is_named_at_any_length(length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        path.write_bytes(SOUND[:length])
        with pytest.raises(CheckpointError) as caught:
            load(Path(folder))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(position=st.integers(0, SOUND.index(b"\x80?") - 1), byte=st.integers(0, 255))
@settings(deadline=None, max_examples=300)
def test_a_damaged_header_never_escapes_as_another_error(position: int, byte: int) -> None:
    damaged = SOUND[:position] + bytes([byte]) + SOUND[position + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / NAME).write_bytes(damaged)
        try:
            loaded = load(Path(folder))
        except CheckpointError:
            return
    # What loads in spite of it has the names and shapes asked for.
    shapes = {name: list(tensor.shape) for name, tensor in loaded.state_dict().items()}
    assert shapes == {"0.weight": [4, 3], "0.bias": [4], "1.weight": [2, 4]}


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(SOUND + b"more")
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        load(tmp_path)


def test_a_header_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes((2**40).to_bytes(8, "little") + SOUND[8:])
    with pytest.raises(CheckpointError, match=NAME):
        load(tmp_path)


def test_a_missing_tensor_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.safetensors"):
        list(read_tensors(tmp_path / "absent.safetensors"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "holds a JSON list"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_broken_json_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{reason}|config\.json: {reason}"):
        read_json_object(path)
