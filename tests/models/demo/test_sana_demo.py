"""The shipped checkpoint: small, clean, loadable by diffusers, and it draws what it is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.catalogue import describe
from models.demo.evaluate import CHECKPOINT, examine
from models.demo.grammar import Asked, Prompt, held_out_prompts
from models.sana.pipeline import SanaPipeline

FILES = sorted(path for path in CHECKPOINT.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def pipeline() -> SanaPipeline:
    return SanaPipeline.load(describe(CHECKPOINT), device="cpu", dtype=torch.float32)


def test_sana_demo_draws_what_the_prompt_says(pipeline: SanaPipeline) -> None:
    plain = [
        Prompt("a red circle on a blue background", Asked("circle", "red", "blue")),
        Prompt("a yellow square on a black background", Asked("square", "yellow", "black")),
        Prompt("a green triangle on a white background", Asked("triangle", "green", "white")),
    ]
    prompts = plain + held_out_prompts("core", 5, seed=1) + held_out_prompts("full", 4, seed=1)
    failures = [
        (prompt.text, verdict.reasons)
        for prompt, verdict, _ in examine(pipeline, prompts)
        if not verdict.passed
    ]
    assert len(failures) <= 1, failures


def test_sana_demo_shows_its_coarse_colours_in_previews(pipeline: SanaPipeline) -> None:
    from models.demo.evaluate import default_request

    text = "a large red square in the center on a white background"
    request = default_request(pipeline.spec, text, seed=3)
    generation = pipeline.prepare(request)
    while not generation.is_done:
        pipeline.step([generation])
    (preview,) = pipeline.preview(generation)
    red, green, blue = preview.getpixel((preview.width // 2, preview.height // 2))
    assert red > 170
    assert max(green, blue) < 110
    assert min(preview.getpixel((2, 2))) > 200


def test_sana_demo_takes_at_most_twelve_megabytes() -> None:
    assert sum(path.stat().st_size for path in FILES) <= 12_000_000


def test_sana_demo_is_in_bfloat16_but_for_its_preview_map() -> None:
    for path in FILES:
        if path.suffix == ".safetensors":
            dtypes = {tensor.dtype for tensor in load_file(path).values()}
            preview = path.name == "preview.safetensors"
            assert dtypes == {torch.float32 if preview else torch.bfloat16}


def test_no_file_of_sana_demo_names_a_place_on_a_machine() -> None:
    local = re.compile(rb"/(?:work|tmp|home|root|usr|Users|mnt|var)/|file://|localhost")
    for path in FILES:
        assert not local.search(path.read_bytes()), path.name
        if path.suffix == ".json":
            assert "_name_or_path" not in json.loads(path.read_text("utf-8"))


# diffusers meets numpy 2 with tensors whose conversion takes no copy keyword.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_diffusers_draws_the_same_picture_from_sana_demo(
    pipeline: SanaPipeline, tmp_path: Path
) -> None:
    from diffusers import SanaPipeline as Reference

    from models.demo.evaluate import default_request, generate, to_picture
    from models.demo.judge import judge

    prompt = "a red circle on a blue background"
    request = default_request(pipeline.spec, prompt, seed=11)
    noise = pipeline.prepare(request).latents.clone()
    reference = Reference.from_pretrained(CHECKPOINT, dtype=torch.float32)
    reference.set_progress_bar_config(disable=True)
    (expected,) = reference(
        prompt,
        height=256,
        width=256,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        latents=noise,
        use_resolution_binning=False,
    ).images
    (image,) = generate(pipeline, [request])
    assert judge(to_picture(expected), Asked("circle", "red", "blue")).passed
    assert (to_picture(image) - to_picture(expected)).abs().max() <= 2 / 127.5 + 1e-6
