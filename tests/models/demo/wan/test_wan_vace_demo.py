"""The shipped clip model: what its prompts say is seen, from every form of its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.catalogue import BUNDLED, discover
from models.demo.wan.captions import held_out_prompts
from models.demo.wan.evaluate import default_request, examine, generate, to_clip
from models.demo.wan.train_autoencoder import CONFIG as AUTOENCODER
from models.demo.wan.train_transformer import CONFIG as TRANSFORMER
from models.wan.autoencoder_loading import load_autoencoder
from models.wan.checkpoint import WanVaceCheckpoint
from models.wan.pipeline import WanVacePipeline
from models.wan.preview_fit import fit_preview

FOLDER = Path("models/demo/wan/wan-vace-demo")
# The whole examination is `python -m models.demo.wan.evaluate`; a dozen prompts show a broken one.
PROMPTS, LEAST_RIGHT = 12, 9


def load(name: str, **changes) -> WanVacePipeline:
    (spec,) = discover([name])
    spec = spec.model_copy(update=changes)
    return WanVacePipeline.load(spec, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def pipeline() -> WanVacePipeline:
    return load("wan-vace-demo")


@pytest.mark.parametrize(
    ("name", "residency"),
    [
        ("wan-vace-demo", None),
        ("wan-vace-demo-q8_0", "packed"),
        ("wan-vace-demo-q4_k_m", "packed"),
    ],
)
def test_held_out_prompts_are_shown(name, residency):
    pipeline = load(name, residency=residency)
    verdicts = [verdict for _, verdict, _ in examine(pipeline, held_out_prompts(PROMPTS))]
    wrong = [verdict.reasons for verdict in verdicts if not verdict.passed]
    assert len(verdicts) - len(wrong) >= LEAST_RIGHT, wrong


def test_another_prompt_than_the_one_given_is_not_seen(pipeline):
    prompts = held_out_prompts(4)
    asked = [prompt.asked for prompt in prompts]
    shifted = [
        type(prompt)(prompt.text, other)
        for prompt, other in zip(prompts, asked[1:] + asked[:1], strict=True)
    ]
    assert not any(verdict.passed for _, verdict, _ in examine(pipeline, shifted))


def test_eight_bit_weights_make_nearly_the_same_clip(pipeline):
    prompt = held_out_prompts(1)[0].text
    clips = []
    for each in (pipeline, load("wan-vace-demo-q8_0")):
        (clip,) = generate(each, [default_request(each.spec, prompt, 0)])
        clips.append(to_clip(clip))
    # Mean over all pixels, in [-1, 1]: edges move by fractions of a pixel.
    assert (clips[0] - clips[1]).abs().mean() < 0.05


@pytest.mark.parametrize("name", ["wan-vace-demo", "wan-vace-demo-q8_0", "wan-vace-demo-q4_k_m"])
def test_every_form_is_of_the_trained_architecture(name):
    checkpoint = WanVaceCheckpoint.read(discover([name])[0].source)
    assert checkpoint.config == TRANSFORMER
    vae = load_autoencoder(checkpoint.autoencoder, device=torch.device("cpu")).config
    assert (vae.base_dim, vae.dim_mult) == (AUTOENCODER.base_dim, AUTOENCODER.dim_mult)


def test_latents_of_clips_have_unit_variance(pipeline):
    from models.demo.wan.export import measure

    latents, _ = measure(pipeline.autoencoder, count=64)
    normalised = pipeline.autoencoder.normalize(latents)
    assert normalised.mean().abs() < 0.15
    assert 0.85 < normalised.std() < 1.15


@pytest.mark.parametrize("came_with", ["a map", "no map"])
def test_previews_show_the_clip_s_colours(pipeline, came_with, monkeypatch):
    """A linear map is rough, but it must tell this clip from one of other colours."""
    if came_with == "no map":
        monkeypatch.setattr(pipeline, "_preview", fit_preview(pipeline.autoencoder))
    prompts = (
        "a red circle moving right on a blue background",
        "a green square moving up on a yellow background",
    )
    previews, clips = [], []
    for prompt in prompts:
        generation = pipeline.prepare(default_request(pipeline.spec, prompt, 0))
        assert pipeline.preview(generation) == []
        while not generation.is_done:
            pipeline.step([generation])
        shown = pipeline.preview(generation)
        assert len(shown) == 3
        previews.append(np.stack([np.asarray(one.resize((8, 8)), dtype=float) for one in shown]))
        frames = pipeline.decode(generation).frames[[0, 4, 8]]
        clips.append(frames.reshape(3, 8, 8, 8, 8, 3).mean((2, 4)))
    for own, other in ((0, 1), (1, 0)):
        error = np.abs(previews[own] - clips[own]).mean()
        assert error < 0.6 * np.abs(previews[own] - clips[other]).mean()


def test_all_bundled_forms_are_described():
    wan = [name for name in BUNDLED if name.startswith("wan-")]
    assert [spec.id for spec in discover(wan)] == wan
