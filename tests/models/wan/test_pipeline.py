"""Whole runs of a tiny Wan-VACE checkpoint: like the reference, alone, together, and resumed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanVACEPipeline,
)
from diffusers.schedulers import SchedulerMixin
from PIL import Image

from models.pipeline import Clip
from models.wan import pipeline as pipeline_module
from models.wan.generation import BatchConditioning
from models.wan.pipeline import WanVacePipeline
from models.wan.step_memory import step_bytes
from tests.models.runs import relative_error
from tests.models.test_samplers import unipc_levels
from tests.models.wan.tiny_checkpoint import clip, request, run

# float32 throughout: rounding of a whole run of 6 guided steps, and of the autoencoder.
RUN_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def reference(tiny_wan: Path) -> WanVACEPipeline:
    """Diffusers' pipeline on the noise levels of the official release; see docs/departures.md."""
    pipeline = WanVACEPipeline.from_pretrained(tiny_wan)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = official_scheduler("unipc")
    return pipeline


def official_scheduler(name: str) -> SchedulerMixin:
    """A scheduler of diffusers that takes the official levels for whatever number of steps."""
    shift = request().flow_shift
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    scheduler = {
        "unipc": lambda: UniPCMultistepScheduler(**flow),
        "dpm-solver++": lambda: DPMSolverMultistepScheduler(**flow),
        "flow-euler": lambda: FlowMatchEulerDiscreteScheduler(shift=shift),
    }[name]()
    set_timesteps = scheduler.set_timesteps

    def set_official_levels(num_inference_steps: int, device=None) -> None:
        even = np.linspace(1, 0, num_inference_steps + 1)[:-1]
        if name == "unipc":
            levels = unipc_levels(num_inference_steps)
            set_timesteps(num_inference_steps, device=device, sigmas=levels)
        elif name == "flow-euler":
            set_timesteps(device=device, sigmas=even.tolist())
        else:
            # This one takes no levels.
            set_timesteps(num_inference_steps, device=device)
            levels = shift * even / (1 + (shift - 1) * even)
            scheduler.sigmas = torch.tensor([*levels, 0.0], dtype=torch.float32)
            scheduler.timesteps = torch.tensor((levels * 1000).astype(np.int64))

    scheduler.set_timesteps = set_official_levels
    return scheduler


def images(source: Clip) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in source.frames]


def reference_clip(reference: WanVACEPipeline, noise: torch.Tensor, **conditioning) -> torch.Tensor:
    """[3, T, H, W] in [-1, 1] of the same request, from the same noise."""
    asked = request()
    output = reference(
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        width=asked.width,
        height=asked.height,
        num_frames=asked.num_frames,
        num_inference_steps=asked.num_inference_steps,
        guidance_scale=asked.guidance_scale,
        latents=noise,
        output_type="np",
        **conditioning,
    )
    frames = torch.from_numpy(np.asarray(output.frames[0]))
    return frames.permute(3, 0, 1, 2).float() * 2 - 1


def decoded(pipeline: WanVacePipeline, generation) -> torch.Tensor:
    """What `decode` makes before it is rounded to 8 bits."""
    latents = generation.latents[:, :, generation.num_references :]
    with torch.inference_mode():
        latents = pipeline.autoencoder.denormalize(latents)
        return pipeline.autoencoder.decode(latents)[0].clamp(-1, 1)


def assert_like_reference(pipeline, reference, asked, **conditioning) -> None:
    generation = pipeline.prepare(asked)
    expected = reference_clip(reference, generation.latents.clone(), **conditioning)
    while not generation.is_done:
        pipeline.step([generation])
    assert relative_error(decoded(pipeline, generation), expected) < RUN_TOLERANCE


def test_text_to_video_equals_the_reference(wan_pipeline, reference):
    assert_like_reference(wan_pipeline, reference, request())


# The reference converts tensors to arrays in a way that numpy 2 frowns upon.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("sampler", ["dpm-solver++", "flow-euler"])
def test_other_samplers_equal_the_reference_with_theirs(
    wan_pipeline, reference, sampler, monkeypatch
):
    monkeypatch.setattr(reference, "scheduler", official_scheduler(sampler))
    source = clip()
    asked = request(sampler=sampler, control_video=source)
    assert_like_reference(wan_pipeline, reference, asked, video=images(source))


def test_a_control_clip_equals_the_reference(wan_pipeline, reference):
    source = clip()
    asked = request(control_video=source)
    assert_like_reference(wan_pipeline, reference, asked, video=images(source))


def test_a_masked_source_equals_the_reference_given_exact_grey(
    wan_pipeline, reference, monkeypatch
):
    source = clip()
    white = np.zeros((9, 32, 48, 3), dtype=np.uint8)
    white[:, 8:24, 16:32] = 255
    asked = request(video=source, mask=Clip(white, 16.0))
    preprocess = reference.preprocess_conditions

    def with_exact_grey(*arguments):
        # What clients of the reference paint grey beforehand, in pictures of 8 bits.
        video, mask, references = preprocess(*arguments)
        return video * (mask <= 0.5), mask, references

    monkeypatch.setattr(reference, "preprocess_conditions", with_exact_grey)
    masks = [Image.fromarray(frame) for frame in white]
    assert_like_reference(wan_pipeline, reference, asked, video=images(source), mask=masks)


def test_a_reference_picture_equals_the_reference(wan_pipeline, reference):
    picture = clip(count=1, seed=3)
    asked = request(reference_images=(picture,))
    assert_like_reference(wan_pipeline, reference, asked, reference_images=images(picture))


def test_several_reference_pictures_keep_their_order_where_the_reference_turns_it_round(
    wan_pipeline, reference
):
    first, second = clip(count=1, seed=3), clip(count=1, seed=4)
    asked = request(reference_images=(first, second))
    turned = [*images(second), *images(first)]
    assert_like_reference(wan_pipeline, reference, asked, reference_images=turned)


def test_conditioning_scales_equal_the_reference(wan_pipeline, reference):
    source = clip()
    asked = request(control_video=source, conditioning_scale=(0.4,))
    assert_like_reference(
        wan_pipeline, reference, asked, video=images(source), conditioning_scale=0.4
    )


@pytest.mark.parametrize("sampler", ["unipc", "dpm-solver++", "flow-euler"])
def test_members_of_one_batch_agree_with_their_solo_runs(wan_pipeline, sampler):
    asked = [
        request(seed=1, sampler=sampler),
        request(seed=2, num_inference_steps=4, prompt="a white square moving up"),
        request(seed=3, control_video=clip(), guidance_scale=2.0, flow_shift=5.0),
    ]
    alone = [run(wan_pipeline, one).latents for one in asked]
    together = [wan_pipeline.prepare(one) for one in asked]
    while going := [generation for generation in together if not generation.is_done]:
        wan_pipeline.step(going)
    for generation, expected in zip(together, alone, strict=True):
        assert relative_error(generation.latents, expected) < 1e-5


@pytest.mark.parametrize("sampler", ["unipc", "dpm-solver++", "flow-euler"])
def test_a_resumed_run_is_bit_identical(wan_pipeline, sampler):
    asked = request(sampler=sampler, reference_images=(clip(count=1),))
    unbroken = run(wan_pipeline, asked)
    first = wan_pipeline.prepare(asked)
    for _ in range(3):
        wan_pipeline.step([first])
    resumed = wan_pipeline.prepare(asked)
    resumed.load_state_dict(first.state_dict())
    while not resumed.is_done:
        wan_pipeline.step([resumed])
    assert resumed.latents.equal(unbroken.latents)


def test_halves_of_guidance_one_after_the_other_give_the_same(wan_pipeline, monkeypatch):
    expected = run(wan_pipeline, request()).latents
    monkeypatch.setattr(pipeline_module, "TOKENS_TOGETHER", 1)
    assert relative_error(run(wan_pipeline, request()).latents, expected) < 1e-5


def test_a_guidance_of_one_takes_no_negative_prompt(wan_pipeline):
    one = run(wan_pipeline, request(guidance_scale=1.0))
    other = run(wan_pipeline, request(guidance_scale=1.0, negative_prompt="something else"))
    assert not one.is_guided
    assert one.latents.equal(other.latents)


def test_the_finished_clip_has_the_size_and_length_asked_for(wan_pipeline):
    asked = request(reference_images=(clip(count=1), clip(count=1, seed=1)), fps=12.0)
    finished = wan_pipeline.decode(run(wan_pipeline, asked))
    assert finished.frames.shape == (9, 32, 48, 3)
    assert finished.frames.dtype == np.uint8
    assert finished.fps == 12.0


def test_seeds_and_prompts_matter(wan_pipeline):
    plain = run(wan_pipeline, request()).latents
    assert run(wan_pipeline, request()).latents.equal(plain)
    assert not run(wan_pipeline, request(seed=8)).latents.equal(plain)
    assert not run(wan_pipeline, request(prompt="a green square")).latents.equal(plain)


def test_decoding_before_the_last_step_is_refused(wan_pipeline):
    generation = wan_pipeline.prepare(request())
    with pytest.raises(ValueError, match="step 0 of 6"):
        wan_pipeline.decode(generation)


def test_requests_outside_the_limits_are_refused(wan_pipeline):
    with pytest.raises(ValueError, match="num_frames is 8, expected 4n"):
        wan_pipeline.prepare(request(num_frames=8))


def test_a_member_alone_lends_its_conditioning_to_the_batch(wan_pipeline):
    member = wan_pipeline.prepare(request())
    batch = BatchConditioning([member])
    assert batch.text is member.text
    assert batch.context is member.context


@contextmanager
def unchanged(*generations) -> Iterator[None]:
    before = [(g.step_index, g.latents.clone()) for g in generations]
    yield
    for generation, (step, latents) in zip(generations, before, strict=True):
        assert generation.step_index == step
        assert generation.latents.equal(latents)


def test_on_a_host_what_does_not_fit_the_memory_is_refused_before_any_work(
    wan_pipeline, monkeypatch
):
    def free(clips: int) -> int:
        config, tokens = wan_pipeline.transformer.config, first.context.shape[1]
        return step_bytes(config, tokens, torch.float32.itemsize, clips=clips)

    first, second = wan_pipeline.prepare(request(seed=1)), wan_pipeline.prepare(request(seed=2))
    monkeypatch.setattr(pipeline_module, "available_host_bytes", lambda: free(1) - 1)
    with pytest.raises(MemoryError, match="a step takes"):
        wan_pipeline.prepare(request())
    monkeypatch.setattr(pipeline_module, "available_host_bytes", lambda: free(2) - 1)
    wan_pipeline.prepare(request())
    with unchanged(first, second), pytest.raises(MemoryError):
        wan_pipeline.step([first, second])
    wan_pipeline.step([first])
    assert first.step_index == 1


def test_batches_that_cannot_share_a_step_are_refused_before_any_work(wan_pipeline):
    wide, tall = wan_pipeline.prepare(request()), wan_pipeline.prepare(request(height=48))
    done = run(wan_pipeline, request(num_inference_steps=1))
    with unchanged(wide, tall, done):
        with pytest.raises(ValueError, match="batch is empty"):
            wan_pipeline.step([])
        with pytest.raises(ValueError, match="twice"):
            wan_pipeline.step([wide, wide])
        with pytest.raises(ValueError, match="mixes"):
            wan_pipeline.step([wide, tall])
        with pytest.raises(ValueError, match="took all its 1 steps"):
            wan_pipeline.step([wide, done])
        with pytest.raises(TypeError, match="object is not a generation"):
            wan_pipeline.step([object()])


def test_the_clips_of_a_request_are_let_go_once_it_is_prepared(wan_pipeline):
    """Each may have hundreds of megabytes, of which no budget knows."""
    sources = {"control_video": clip(), "first_clip": clip(1), "last_clip": clip(1, seed=1)}
    asked = request(**sources, reference_images=(clip(1, seed=2),))
    arrays = [*sources.values(), *asked.reference_images]
    frames = [weakref.ref(source.frames) for source in arrays]
    generation = wan_pipeline.prepare(asked)
    wan_pipeline.step([generation])
    del sources, asked, arrays
    gc.collect()
    assert [ref() is None for ref in frames] == [True] * 4
    assert not generation.is_done
