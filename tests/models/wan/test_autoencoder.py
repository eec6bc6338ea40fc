"""The autoencoder against its reference, in pieces and whole, from every layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

from models.errors import CheckpointError, UnsupportedCheckpoint
from models.wan.autoencoder import WanAutoencoder, WanAutoencoderConfig
from models.wan.autoencoder_config import infer_config
from models.wan.autoencoder_loading import load_autoencoder
from models.wan.autoencoder_tiling import Tiles, decode_tiled, encode_tiled
from models.wan.causal_conv import CausalConv3d, Past
from tests.models.runs import relative_error

TINY = {
    "base_dim": 4,
    "z_dim": 16,
    "dim_mult": [1, 2, 3, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}
# float32 sums in another order: about 1e-6 over the depth of this network.
TOLERANCE = 1e-5


def reference(**changes):
    torch.manual_seed(0)
    return AutoencoderKLWan(**{**TINY, "attn_scales": [], **changes}).eval()


def ours(model) -> WanAutoencoder:
    autoencoder = WanAutoencoder(WanAutoencoderConfig.from_json(dict(model.config)))
    autoencoder.load_state_dict(model.state_dict())
    return autoencoder.requires_grad_(False)


def video(frames: int, height: int = 32, width: int = 24, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def pair():
    model = reference(num_res_blocks=2)
    return model, ours(model)


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
@torch.no_grad()
def test_encode_and_decode_equal_the_reference(pair, frames):
    model, autoencoder = pair
    clip = video(frames)
    latents = model.encode(clip).latent_dist.mode()
    found = autoencoder.encode(clip)
    assert found.shape == (1, 16, (frames + 3) // 4, 4, 3)
    assert relative_error(found, latents) < TOLERANCE
    decoded = autoencoder.decode(latents)
    assert decoded.shape == clip.shape
    assert relative_error(decoded.clamp(-1, 1), model.decode(latents).sample) < TOLERANCE


@pytest.mark.parametrize("at_once", [2, 3, 100])
def test_any_cutting_into_chunks_gives_the_same(pair, at_once):
    _, autoencoder = pair
    clip = video(17, batch=2)
    latents = autoencoder.encode(clip)
    assert relative_error(autoencoder.encode(clip, latents_at_once=at_once), latents) < TOLERANCE
    whole = autoencoder.decode(latents)
    pieces = autoencoder.decode(latents, latents_at_once=at_once)
    assert relative_error(pieces, whole) < TOLERANCE


def test_frames_do_not_depend_on_those_after_them(pair):
    _, autoencoder = pair
    clip = video(9)
    assert autoencoder.encode(clip)[:, :, :2].equal(autoencoder.encode(clip[:, :, :5]))
    latents = autoencoder.encode(clip)
    assert autoencoder.decode(latents)[:, :, :5].equal(autoencoder.decode(latents[:, :, :2]))


def test_decoding_comes_chunk_by_chunk_and_can_be_left(pair):
    _, autoencoder = pair
    chunks = autoencoder.frames(autoencoder.encode(video(9)))
    assert next(chunks).shape[2] == 1
    assert next(chunks).shape[2] == 4
    chunks.close()


def test_a_pass_over_one_clip_leaves_nothing_for_the_next(pair):
    _, autoencoder = pair
    clip = video(9)
    first = autoencoder.encode(clip)
    autoencoder.encode(video(5))
    assert autoencoder.encode(clip).equal(first)


@torch.no_grad()
def test_tiles_equal_the_reference_s_tiles(pair):
    model, autoencoder = pair
    clip = video(5, height=80, width=112)
    model.enable_tiling(
        tile_sample_min_height=48,
        tile_sample_min_width=48,
        tile_sample_stride_height=32,
        tile_sample_stride_width=32,
    )
    try:
        latents = model.encode(clip).latent_dist.mode()
        decoded = model.decode(latents).sample
    finally:
        model.disable_tiling()
    tiles = Tiles(48, 32)
    assert relative_error(encode_tiled(autoencoder, clip, tiles), latents) < TOLERANCE
    found = decode_tiled(autoencoder, latents, tiles).clamp(-1, 1)
    assert relative_error(found, decoded) < TOLERANCE


def test_one_tile_that_holds_everything_is_the_whole(pair):
    _, autoencoder = pair
    latents = autoencoder.encode(video(5))
    whole = autoencoder.decode(latents)
    assert decode_tiled(autoencoder, latents, Tiles(32, 32)).equal(whole)


@pytest.mark.parametrize(("side", "stride"), [(20, 16), (16, 0), (16, 24)])
def test_impossible_tiles_are_refused(side, stride):
    with pytest.raises(ValueError, match="expected multiples of 8"):
        Tiles(side, stride)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 16, 16), "4 frames, expected 4n"),
        ((1, 3, 5, 20, 16), "16x20, expected multiples"),
    ],
)
def test_clips_that_do_not_fill_latents_are_refused(pair, shape, message):
    with pytest.raises(ValueError, match=message):
        pair[1].encode(torch.zeros(shape))


def test_normalized_latents_come_back(pair):
    _, autoencoder = pair
    latents = torch.randn(2, 16, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    normalized = autoencoder.normalize(latents)
    config = autoencoder.config
    expected = (latents[1, 3, 0, 1, 2] - config.latents_mean[3]) / config.latents_std[3]
    torch.testing.assert_close(normalized[1, 3, 0, 1, 2], expected)
    torch.testing.assert_close(autoencoder.denormalize(normalized), latents)


def test_gradients_flow_through_both_directions():
    autoencoder = WanAutoencoder(WanAutoencoderConfig.from_json(TINY))
    clip = video(9)
    (autoencoder.decode(autoencoder.encode(clip)) - clip).square().mean().backward()
    lacking = [name for name, p in autoencoder.named_parameters() if p.grad is None]
    assert not lacking


def test_defaults_are_those_of_the_release():
    with torch.device("meta"):
        released = AutoencoderKLWan()
    assert WanAutoencoderConfig.from_json(dict(released.config)) == WanAutoencoderConfig()
    with torch.device("meta"):
        autoencoder = WanAutoencoder(WanAutoencoderConfig())
    shapes = {name: tuple(t.shape) for name, t in released.state_dict().items()}
    assert {name: tuple(t.shape) for name, t in autoencoder.state_dict().items()} == shapes
    assert infer_config(shapes) == WanAutoencoderConfig()


def test_a_convolution_s_first_frame_alone_is_as_in_a_clip():
    torch.manual_seed(0)
    convolution = CausalConv3d(3, 5, (3, 3, 3))
    clip = torch.randn(2, 3, 4, 6, 7)
    whole = convolution(clip, Past())
    past = Past()
    parts = [convolution(part, past) for part in clip.split([1, 2, 1], dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole)


def original_layout(tensors: dict[str, torch.Tensor], blocks: int) -> dict[str, torch.Tensor]:
    """The names of the release, written down from its module tree, independently of our table."""
    ends = {
        "quant_conv": "conv1",
        "post_quant_conv": "conv2",
        "encoder.conv_in": "encoder.conv1",
        "encoder.norm_out": "encoder.head.0",
        "encoder.conv_out": "encoder.head.2",
        "decoder.conv_in": "decoder.conv1",
        "decoder.norm_out": "decoder.head.0",
        "decoder.conv_out": "decoder.head.2",
    }
    inside = {
        "norm1": "residual.0",
        "conv1": "residual.2",
        "norm2": "residual.3",
        "conv2": "residual.6",
        "conv_shortcut": "shortcut",
    }
    renamed = {}
    for name, tensor in tensors.items():
        stem, leaf = name.rsplit(".", 1)
        parts = stem.split(".")
        if stem in ends:
            renamed[f"{ends[stem]}.{leaf}"] = tensor
            continue
        if parts[1] == "mid_block":
            place = {("resnets", "0"): 0, ("attentions", "0"): 1, ("resnets", "1"): 2}
            layer, rest = f"middle.{place[parts[2], parts[3]]}", parts[4:]
        elif parts[1] == "down_blocks":
            layer, rest = f"downsamples.{parts[2]}", parts[3:]
        else:
            place = blocks + 1 if parts[3] == "upsamplers" else int(parts[4])
            layer, rest = f"upsamples.{int(parts[2]) * (blocks + 2) + place}", parts[5:]
        rest = [inside.get(part, part) for part in rest]
        renamed[".".join([parts[0], layer, *rest, leaf])] = tensor
    return renamed


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_in_the_original_layout_load(tmp_path: Path, blocks: int, suffix: str):
    model = reference(num_res_blocks=blocks)
    tensors = original_layout(model.state_dict(), blocks)
    assert "decoder.middle.1.to_qkv.weight" in tensors
    assert f"decoder.upsamples.{blocks + 1}.time_conv.weight" in tensors
    path = tmp_path / f"vae{suffix}"
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    loaded = load_autoencoder(path, device=torch.device("cpu"))
    expected = ours(model)
    clip = video(5)
    assert loaded.encode(clip).equal(expected.encode(clip))
    assert loaded.config.num_res_blocks == blocks


def test_a_diffusers_folder_loads(tmp_path: Path):
    model = reference()
    model.save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path, device=torch.device("cpu"))
    clip = video(5)
    assert loaded.encode(clip).equal(ours(model).encode(clip))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attn_scales", [1.0], r"attn_scales is \[1.0\], supported: \[\]"),
        ("is_residual", True, "is_residual is True, supported: False"),
        ("surprise", 1, "surprise is 1, supported: no such option"),
        ("dim_mult", [1, 2, 4], r"dim_mult is \(1, 2, 4\)"),
        ("temperal_downsample", [True, True, True], "expected two halvings"),
        ("latents_std", [0.0] * 16, "latents_std holds a number that is not positive"),
        ("latents_mean", [0.0] * 3, "latents_mean is"),
        ("_class_name", "AutoencoderKL", "expected 'AutoencoderKLWan'"),
    ],
)
def test_configurations_that_are_not_computed_are_refused(tmp_path: Path, key, value, message):
    reference().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UnsupportedCheckpoint, match=message) as caught:
        load_autoencoder(tmp_path, device=torch.device("cpu"))
    assert str(caught.value).startswith(str(path))


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path):
    tensors = reference().state_dict()
    lacking = {name: t for name, t in tensors.items() if name != "decoder.conv_in.bias"}
    path = tmp_path / "vae.safetensors"
    save_file(lacking, path)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor \('decoder\.conv_in\.bias'\)"):
        load_autoencoder(path, device=torch.device("cpu"))
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(UnsupportedCheckpoint, match=r"'encoder\.conv_in\.weight' is missing"):
        load_autoencoder(path, device=torch.device("cpu"))


def test_a_pickle_that_is_no_file_of_tensors_is_refused_unrun(tmp_path: Path):
    path = tmp_path / "vae.pth"
    torch.save({"weight": Path("somewhere")}, path)
    with pytest.raises(CheckpointError, match="cannot be read as a file of tensors"):
        load_autoencoder(path, device=torch.device("cpu"))
    path.write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match=r"vae\.pth: cannot be read"):
        load_autoencoder(path, device=torch.device("cpu"))
