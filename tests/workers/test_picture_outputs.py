"""Recipes inside pictures: what goes in comes out, in all three formats."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_harness import CPU, claimed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from workers.outputs import RecipeNotFound, encode, read_recipe
from workers.recipe import Recipes, checkpoint_digest
from workers.thumbnails import preview_jpeg, variants

FORMATS = ("png", "jpeg", "webp")
PILLOW_NAME = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def picture(width: int = 96, height: int = 64) -> Image.Image:
    gradient = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (gradient, gradient.rotate(180), Image.new("L", (width, height), 90)))


def recipe_of(prompt: str = "a red circle on a blue background") -> dict[str, Any]:
    return Recipes("fake", "sha256:00", CPU, "float32").of(claimed(prompt, num_images=3, seed=7), 2)


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_recipe_read_back_is_the_one_written(output_format: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    recipe = recipe_of()
    path.write_bytes(encode(picture(), output_format, quality=90, recipe=recipe))
    assert read_recipe(path) == recipe
    with Image.open(path) as image:
        assert image.format == PILLOW_NAME[output_format]
        assert image.size == (96, 64)


@pytest.mark.parametrize("output_format", FORMATS)
@given(
    prompt=st.text(st.characters(exclude_categories=("Cs",)), max_size=60),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_prompt_survives(output_format: str, prompt: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    recipe = {"denoised": "1", "input": {"prompt": prompt}}
    path.write_bytes(encode(picture(8, 8), output_format, quality=50, recipe=recipe))
    assert read_recipe(path) == recipe


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_longest_prompts_of_the_default_limits_fit(output_format: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    prompts = {"prompt": "\U0001f534" * 4000, "negative_prompt": "\x01" * 4000}
    recipe = {"denoised": "1", "input": prompts}
    path.write_bytes(encode(picture(8, 8), output_format, quality=50, recipe=recipe))
    assert read_recipe(path) == recipe


def test_a_recipe_too_large_for_jpeg_leaves_a_sound_picture(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    recipe = {"denoised": "1", "input": {"prompt": "x" * 70_000}}
    path.write_bytes(encode(picture(), "jpeg", quality=90, recipe=recipe))
    with Image.open(path) as image:
        image.load()
    with pytest.raises(RecipeNotFound, match="carries no recipe"):
        read_recipe(path)


@pytest.mark.parametrize("output_format", FORMATS)
def test_equal_pictures_give_equal_bytes(output_format: str) -> None:
    recipe = recipe_of()
    first, second = (encode(picture(), output_format, quality=90, recipe=recipe) for _ in range(2))
    assert first == second


def test_png_keeps_every_pixel_and_names_its_text_chunk() -> None:
    data = encode(picture(), "png", quality=None, recipe=recipe_of())
    assert Image.open(io.BytesIO(data)).tobytes() == picture().tobytes()
    assert b"iTXtdenoised\0" in data


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_quality_decides_the_size(output_format: str) -> None:
    noisy = Image.effect_noise((96, 96), 80).convert("RGB")
    low, high = (
        len(encode(noisy, output_format, quality=q, recipe={"denoised": "1"})) for q in (10, 95)
    )
    assert low < high / 2


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'gif'"):
        encode(picture(), "gif", quality=90, recipe={})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"plain text", "is not a picture"),
        (b"", "is not a picture"),
    ],
)
def test_a_file_that_is_no_picture_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file.png"
    path.write_bytes(content)
    with pytest.raises(RecipeNotFound, match=re.escape(str(path))) as caught:
        read_recipe(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_picture_of_another_program_carries_no_recipe(output_format: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    picture().save(path, PILLOW_NAME[output_format])
    with pytest.raises(RecipeNotFound, match="carries no recipe"):
        read_recipe(path)


def test_the_recipe_of_an_image_is_a_request_for_just_that_image() -> None:
    recipe = recipe_of()
    assert recipe["input"]["seed"] == 9
    assert recipe["input"]["num_images"] == 1
    assert recipe["model"] == "fake"
    assert recipe["checkpoint"] == "sha256:00"
    assert recipe["deterministic"] is False
    assert (recipe["device"], recipe["dtype"]) == ("cpu", "float32")
    assert {"denoised", "torch", "residency"} <= recipe.keys()
    json.dumps(recipe)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_a_preview_shows_all_images_and_stays_small(rows: int, columns: int, count: int) -> None:
    noisy = Image.effect_noise((8 * columns, 8 * rows), 120).convert("RGB")
    data = preview_jpeg([noisy] * count)
    assert len(data) <= 16_384
    assert max(Image.open(io.BytesIO(data)).size) <= 256


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 300), (256, 150)), ((96, 64), (96, 64)), ((1, 3000), (1, 256))]
)
def test_a_thumbnail_is_the_picture_within_256_pixels(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    small = Image.open(io.BytesIO(variants(picture(*size))["thumbnail"]))
    assert (small.format, small.size) == ("JPEG", expected)
    wanted = picture(*size).resize(expected, Image.Resampling.LANCZOS)
    error = np.abs(np.asarray(small, dtype=float) - np.asarray(wanted, dtype=float))
    # What JPEG loses of a smooth picture.
    assert error.mean() < 4


def test_the_checkpoint_digest_is_what_sha256sum_says(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in ("transformer/b.safetensors", "a.safetensors", "vae/c.gguf", "config.json"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    names = ["a.safetensors", "transformer/b.safetensors", "vae/c.gguf"]
    listing = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True)
    whole = subprocess.run(["sha256sum"], input=listing.stdout, capture_output=True, check=True)
    expected = "sha256:" + whole.stdout.split()[0].decode()
    assert checkpoint_digest(folder, [folder], tmp_path / "cache.json") == expected
    (folder / "unused.gguf").write_bytes(b"another transformer")
    parts = [folder / "transformer", folder / "vae", folder / "a.safetensors"]
    assert checkpoint_digest(folder, parts, tmp_path / "cache.json") == expected


def test_the_digest_cache_notices_a_changed_file_and_survives_damage(tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache.json"
    folder.mkdir()
    weights = folder / "a.safetensors"
    weights.write_bytes(b"one")
    first = checkpoint_digest(folder, [folder], cache)
    assert json.loads(cache.read_text())
    weights.write_bytes(b"three")
    second = checkpoint_digest(folder, [folder], cache)
    assert second != first
    cache.write_text("{damaged")
    assert checkpoint_digest(folder, [folder], cache) == second


def test_reading_a_recipe_needs_no_tensor_library() -> None:
    script = "import sys, workers.outputs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
