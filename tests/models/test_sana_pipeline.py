"""The whole Sana pipeline against the reference, from a request to its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from models.pipeline import ImageRequest
from models.sana.pipeline import SanaPipeline
from tests.models.runs import (
    REQUEST,
    grey_levels_apart,
    pipeline_of,
    relative_error,
    request,
    run,
)
from tests.models.tiny import write_checkpoint

# numpy's complaint about the reference's schedulers, which are no part of what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "qk_norm and positions": {"qk_norm": "rms_norm_across_heads", "interpolation_scale": 1.0},
    "scaled timesteps": {"timestep_scale": 0.5},
}


@pytest.fixture(scope="module", params=CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SanaPipeline, Any]:
    """Our pipeline and the reference's on the same checkpoint."""
    import diffusers

    folder = write_checkpoint(tmp_path_factory.mktemp("parity") / "sana", transformer=request.param)
    reference = diffusers.SanaPipeline.from_pretrained(folder)
    reference.set_progress_bar_config(disable=True)
    return pipeline_of(folder), reference


def reference_run(reference: Any, asked: ImageRequest) -> tuple[torch.Tensor, list[Image.Image]]:
    import diffusers

    if asked.sampler == "flow-euler":
        reference.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    else:
        reference.scheduler = diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        )

    def call(output_type: str) -> Any:
        return reference(
            prompt=asked.prompt,
            negative_prompt=asked.negative_prompt,
            width=asked.width,
            height=asked.height,
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            num_images_per_prompt=asked.num_images,
            generator=[
                torch.Generator().manual_seed(asked.seed + index)
                for index in range(asked.num_images)
            ],
            use_resolution_binning=False,
            output_type=output_type,
        ).images

    return call("latent"), call("pil")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampler": "flow-euler"},
        {"guidance_scale": 1.0},
        {"num_images": 3, "num_inference_steps": 5},
        {"width": 96, "height": 160, "num_inference_steps": 3},
        {"num_inference_steps": 1},
        {"prompt": "", "negative_prompt": "a longer text than the prompt itself"},
    ],
    ids=str,
)
def test_latents_and_pictures_equal_the_reference(
    both: tuple[SanaPipeline, Any], changes: dict[str, Any]
) -> None:
    pipeline, reference = both
    asked = request(**changes)
    latents, images = reference_run(reference, asked)
    generation = run(pipeline, asked)
    assert relative_error(generation.latents, latents) <= 1e-4
    assert grey_levels_apart(pipeline.decode(generation), images) <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "a red circle on a blue backgrounds"},
        {"negative_prompt": "blurry."},
        {"guidance_scale": 4.51},
        {"seed": 8},
        {"sampler": "flow-euler"},
    ],
    ids=str,
)
def test_the_comparison_would_notice_a_small_change(
    pipeline: SanaPipeline, changes: dict[str, Any]
) -> None:
    latents = run(pipeline, REQUEST).latents
    assert relative_error(run(pipeline, request(**changes)).latents, latents) > 2e-4


def test_a_guidance_embedding_replaces_the_doubled_batch(tmp_path: Path) -> None:
    import diffusers

    folder = write_checkpoint(tmp_path / "sana", transformer={"guidance_embeds": True})
    pipeline = pipeline_of(folder)
    generation = run(pipeline, REQUEST)
    assert not generation.is_guided
    assert generation.batch_key == pipeline.prepare(request(guidance_scale=1.0)).batch_key

    transformer = diffusers.SanaTransformer2DModel.from_pretrained(folder / "transformer")
    scheduler = diffusers.DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    assert pipeline.text_encoder is not None
    embeds = pipeline.text_encoder.encode(REQUEST.prompt)[None]
    latents = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(REQUEST.seed))
    scheduler.set_timesteps(REQUEST.num_inference_steps)
    with torch.inference_mode():
        for timestep in scheduler.timesteps:
            velocity = transformer(
                latents,
                encoder_hidden_states=embeds,
                encoder_attention_mask=torch.ones(embeds.shape[:2]),
                timestep=timestep[None],
                guidance=torch.tensor([REQUEST.guidance_scale * 0.1]),
                return_dict=False,
            )[0]
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    assert relative_error(generation.latents, latents) <= 1e-4
    other = run(pipeline, request(guidance_scale=3.0)).latents
    assert relative_error(other, latents) > 1e-3


def test_noise_is_what_a_cpu_generator_of_the_seed_draws(pipeline: SanaPipeline) -> None:
    generation = pipeline.prepare(request(num_images=2, width=64, height=96))
    for index, latents in enumerate(generation.latents):
        generator = torch.Generator().manual_seed(REQUEST.seed + index)
        assert torch.equal(latents, torch.randn(1, 32, 3, 2, generator=generator)[0])


def test_three_images_equal_three_seeds(pipeline: SanaPipeline) -> None:
    together = pipeline.decode(run(pipeline, request(num_images=3)))
    for index, image in enumerate(together):
        alone = pipeline.decode(run(pipeline, request(seed=REQUEST.seed + index)))
        assert grey_levels_apart([image], alone) <= 1


def test_the_same_request_alone_gives_the_same_bytes(
    pipeline: SanaPipeline, tiny_checkpoint: Path
) -> None:
    first, second = run(pipeline, REQUEST), run(pipeline_of(tiny_checkpoint), REQUEST)
    assert torch.equal(first.latents, second.latents)


def test_known_prompts_are_not_encoded_again(
    pipeline: SanaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.prepare(REQUEST)

    def no_more(*args: Any) -> Any:
        raise AssertionError("encoded again")

    monkeypatch.setattr("models.sana.gemma2.Gemma2Stack._forward", no_more)
    pipeline.prepare(request(seed=5, width=64))
    with pytest.raises(AssertionError):
        pipeline.prepare(request(prompt="never seen before"))


def test_pictures_have_the_requested_size(pipeline: SanaPipeline) -> None:
    asked = request(width=96, height=160, num_images=2, num_inference_steps=1)
    images = pipeline.decode(run(pipeline, asked))
    assert [(image.size, image.mode) for image in images] == [((96, 160), "RGB")] * 2


def test_large_pictures_are_decoded_one_by_one_and_come_out_the_same(
    pipeline: SanaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = run(pipeline, request(num_images=3, num_inference_steps=2))
    together = pipeline.decode(generation)
    monkeypatch.setattr("models.sana.pipeline._PIXELS_PER_DECODE", 1)
    assert grey_levels_apart(pipeline.decode(generation), together) <= 1


def test_unfinished_latents_are_not_decoded(pipeline: SanaPipeline) -> None:
    with pytest.raises(ValueError, match="step 0 of 20"):
        pipeline.decode(pipeline.prepare(REQUEST))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 100}, r"width is 100, allowed: 64\.\.256 in steps of 32"),
        ({"height": 288}, r"height is 288, allowed: 64\.\.256"),
        ({"num_inference_steps": 0}, r"num_inference_steps is 0, allowed: 1\.\.100"),
        ({"guidance_scale": float("nan")}, r"guidance_scale is nan, allowed: 1\.0\.\.20\.0"),
        ({"guidance_scale": float("inf")}, r"guidance_scale is inf"),
        ({"num_images": 9}, r"num_images is 9, allowed: 1\.\.8"),
        ({"sampler": "ddim"}, r"sampler is 'ddim', allowed: dpm-solver\+\+, flow-euler"),
    ],
)
def test_a_request_outside_the_limits_names_field_and_range(
    pipeline: SanaPipeline, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.prepare(request(**changes))
