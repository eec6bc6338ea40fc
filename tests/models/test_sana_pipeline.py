"""The whole Sana pipeline against the reference, and its promises about batches and resuming."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models.catalogue import describe
from models.errors import CheckpointError
from models.loading import load
from models.pipeline import ImageRequest
from models.sana.conditioning import TextConditioning
from models.sana.generation import SanaGeneration
from models.sana.pipeline import SanaPipeline
from models.sana.preview import PREVIEW_FILE
from tests.models.tiny import write_checkpoint

REQUEST = ImageRequest(
    prompt="A red circle on a blue background",
    negative_prompt="blurry",
    width=128,
    height=128,
    num_inference_steps=20,
    guidance_scale=4.5,
    num_images=1,
    seed=7,
    sampler="dpm-solver++",
)

# numpy's complaint about the reference's schedulers, which are no part of what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "qk_norm and positions": {"qk_norm": "rms_norm_across_heads", "interpolation_scale": 1.0},
    "scaled timesteps": {"timestep_scale": 0.5},
}


def request(**changes: Any) -> ImageRequest:
    return dataclasses.replace(REQUEST, **changes)


def pipeline_of(folder: Path, dtype: torch.dtype = torch.float32) -> SanaPipeline:
    return SanaPipeline.load(describe(folder), device="cpu", dtype=dtype)


def finish(pipeline: SanaPipeline, *batch: SanaGeneration) -> None:
    """Step until all are done, leaving out those that are."""
    while going := [generation for generation in batch if not generation.is_done]:
        pipeline.step(going)


def run(pipeline: SanaPipeline, asked: ImageRequest) -> SanaGeneration:
    generation = pipeline.prepare(asked)
    finish(pipeline, generation)
    return generation


def pixels(images: Sequence[Image.Image]) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def grey_levels_apart(first: Sequence[Image.Image], second: Sequence[Image.Image]) -> int:
    return int(np.abs(pixels(first) - pixels(second)).max())


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> SanaPipeline:
    return pipeline_of(tiny_checkpoint)


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


def test_members_that_join_at_any_step_equal_their_solo_runs(pipeline: SanaPipeline) -> None:
    requests = [
        REQUEST,
        request(prompt="a cat", num_inference_steps=7, guidance_scale=2.0, seed=1),
        request(prompt="a photo of a wooden table " * 5, num_images=2, sampler="flow-euler"),
        request(prompt="", negative_prompt="", num_inference_steps=4, seed=3),
    ]
    generations = [pipeline.prepare(asked) for asked in requests]
    assert len({generation.batch_key for generation in generations}) == 1
    # A new member every second step; the shorter ones leave while others go on.
    step = 0
    while not all(generation.is_done for generation in generations):
        present = [g for g in generations[: step // 2 + 1] if not g.is_done]
        if present:
            pipeline.step(present[::-1] if step % 3 else present)
        step += 1
    for asked, generation in zip(requests, generations, strict=True):
        alone = run(pipeline, asked)
        assert grey_levels_apart(pipeline.decode(generation), pipeline.decode(alone)) <= 1
        assert relative_error(generation.latents, alone.latents) <= 1e-4


def test_unguided_members_share_a_step_too(pipeline: SanaPipeline) -> None:
    requests = [
        request(guidance_scale=1.0, num_inference_steps=3),
        request(guidance_scale=1.0, num_inference_steps=5, prompt="a cat", num_images=2),
    ]
    together = [pipeline.prepare(asked) for asked in requests]
    finish(pipeline, *together)
    for asked, generation in zip(requests, together, strict=True):
        assert relative_error(generation.latents, run(pipeline, asked).latents) <= 1e-5


def test_what_may_differ_inside_a_batch_is_not_in_its_key(pipeline: SanaPipeline) -> None:
    key = pipeline.prepare(REQUEST).batch_key
    for same in (
        {"num_inference_steps": 5},
        {"sampler": "flow-euler"},
        {"guidance_scale": 9.0},
        {"prompt": "something much longer than before", "negative_prompt": ""},
        {"num_images": 2},
        {"seed": 1},
    ):
        assert pipeline.prepare(request(**same)).batch_key == key
    for other in ({"width": 64}, {"height": 64}, {"guidance_scale": 1.0}):
        assert pipeline.prepare(request(**other)).batch_key != key


def test_batches_that_cannot_share_a_step_are_refused_unchanged(pipeline: SanaPipeline) -> None:
    one, done = pipeline.prepare(REQUEST), run(pipeline, request(num_inference_steps=1))
    other = pipeline.prepare(request(width=64))
    for batch, message in (
        ([], "empty"),
        ([one, one], "twice"),
        ([one, other], "mixes"),
        ([one, done], "took all its 1 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline.step(batch)
    assert one.step_index == 0


def test_no_member_changes_when_a_step_fails(
    pipeline: SanaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [pipeline.prepare(REQUEST), pipeline.prepare(request(seed=1))]
    pipeline.step(batch[:1])
    before = [generation.state_dict() for generation in batch]

    def failing(*args: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    for target in ("models.sana.pipeline.advance", "models.sana.pipeline.BatchConditioning"):
        with monkeypatch.context() as patch:
            patch.setattr(target, failing)
            pipeline._last_batch = None
            with pytest.raises(torch.OutOfMemoryError):
                pipeline.step(batch)
        for generation, state in zip(batch, before, strict=True):
            for name, tensor in generation.state_dict().items():
                assert torch.equal(tensor, state[name])
    finish(pipeline, *batch)


@pytest.mark.parametrize("at_step", [0, 1, 9, 19])
def test_resuming_alone_is_bit_identical(
    pipeline: SanaPipeline, tiny_checkpoint: Path, tmp_path: Path, at_step: int
) -> None:
    asked = request(num_images=2)
    unbroken = run(pipeline, asked)
    first = pipeline.prepare(asked)
    for _ in range(at_step):
        pipeline.step([first])
    save_file(first.state_dict(), tmp_path / "state.safetensors")
    elsewhere = pipeline_of(tiny_checkpoint)
    resumed = elsewhere.prepare(asked)
    resumed.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert resumed.step_index == at_step
    finish(elsewhere, resumed)
    assert torch.equal(resumed.latents, unbroken.latents)


def test_a_state_is_a_snapshot(pipeline: SanaPipeline) -> None:
    generation = pipeline.prepare(REQUEST)
    pipeline.step([generation])
    state = generation.state_dict()
    copies = {name: tensor.clone() for name, tensor in state.items()}
    pipeline.step([generation])
    generation.load_state_dict(state)
    pipeline.step([generation])
    assert all(torch.equal(state[name], copies[name]) for name in state)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("latents", None, "state holds"),
        ("extra", torch.zeros(1), "state holds"),
        ("latents", torch.zeros(1, 32, 2, 2), r"latents is torch.float32 \[1, 32, 2, 2\], exp"),
        ("latents", torch.zeros(1, 32, 4, 4).half(), r"latents is torch.float16"),
        ("previous_denoised", torch.zeros(2, 32, 4, 4), r"previous_denoised is"),
        ("previous_denoised", torch.full((1, 32, 4, 4), torch.nan), "not finite"),
        ("step_index", torch.tensor(21), r"step_index is 21, expected 0\.\.20"),
        ("step_index", torch.tensor(-1), r"step_index is -1"),
        ("step_index", torch.zeros(2), "step_index has 2 elements"),
    ],
)
def test_a_state_of_another_request_is_refused_unchanged(
    pipeline: SanaPipeline, name: str, value: torch.Tensor | None, message: str
) -> None:
    generation = pipeline.prepare(REQUEST)
    pipeline.step([generation])
    state = pipeline.prepare(request(seed=99)).state_dict()
    if value is None:
        del state[name]
    else:
        state[name] = value
    before = generation.state_dict()
    with pytest.raises(ValueError, match=message):
        generation.load_state_dict(state)
    assert all(torch.equal(before[key], now) for key, now in generation.state_dict().items())


def test_a_stable_batch_joins_its_conditioning_once(
    pipeline: SanaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = 0
    cat = TextConditioning.cat.__func__  # type: ignore[attr-defined]

    def counting(cls: type[TextConditioning], parts: Sequence[TextConditioning]) -> Any:
        nonlocal joined
        joined += 1
        return cat(cls, parts)

    monkeypatch.setattr(TextConditioning, "cat", classmethod(counting))
    batch = [pipeline.prepare(request(seed=seed)) for seed in range(3)]
    for _ in range(4):
        pipeline.step(batch)
    assert joined == 1
    pipeline.step(batch[:2])
    pipeline.step(batch)
    assert joined == 3


def test_decoding_a_member_lets_go_of_its_batch(pipeline: SanaPipeline) -> None:
    batch = [pipeline.prepare(request(seed=seed, num_inference_steps=1)) for seed in range(2)]
    finish(pipeline, *batch)
    pipeline.decode(batch[0])
    assert pipeline._last_batch is None


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


def test_a_preview_follows_the_map_of_the_checkpoint(tiny_copy: Path) -> None:
    weight, bias = torch.zeros(3, 32), torch.tensor([0.0, 0.5, -1.0])
    weight[0, 4] = 0.1
    save_file({"weight": weight, "bias": bias}, tiny_copy / PREVIEW_FILE)
    pipeline = pipeline_of(tiny_copy)
    generation = pipeline.prepare(request(width=64, num_images=2))
    assert pipeline.preview(generation) == []
    pipeline.step([generation])
    images = pipeline.preview(generation)
    assert [image.size for image in images] == [(16, 32)] * 2
    red = generation.previous_denoised[0, 4] * 0.1
    expected = ((red.mean() / 2 + 0.5) * 255).item()
    colour = pixels(images)[0].reshape(-1, 3).mean(axis=0)
    assert colour == pytest.approx([expected, 191, 0], abs=4)


def test_a_checkpoint_without_a_map_offers_no_preview(pipeline: SanaPipeline) -> None:
    generation = pipeline.prepare(REQUEST)
    pipeline.step([generation])
    assert pipeline.preview(generation) == []


@pytest.mark.parametrize(
    "tensors", [{"weight": torch.zeros(3, 16), "bias": torch.zeros(3)}, {"bias": torch.zeros(3)}]
)
def test_a_preview_map_that_does_not_fit_is_refused(
    tiny_copy: Path, tensors: dict[str, torch.Tensor]
) -> None:
    save_file(tensors, tiny_copy / PREVIEW_FILE)
    with pytest.raises(CheckpointError, match=rf"{PREVIEW_FILE}: holds .* expected "):
        pipeline_of(tiny_copy)


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


def test_without_a_text_encoder_embeddings_start_a_generation(
    pipeline: SanaPipeline, tiny_checkpoint: Path
) -> None:
    bare = SanaPipeline.load(
        describe(tiny_checkpoint), device="cpu", dtype=torch.float32, text_encoder=False
    )
    with pytest.raises(RuntimeError, match="loaded without its text encoder"):
        bare.prepare(REQUEST)
    assert pipeline.text_encoder is not None
    positive = pipeline.text_encoder.encode(REQUEST.prompt)
    negative = pipeline.text_encoder.encode(REQUEST.negative_prompt, "negative")
    with pytest.raises(ValueError, match="negative"):
        bare.begin(REQUEST, positive, None)
    generation = bare.begin(REQUEST, positive, negative)
    finish(bare, generation)
    assert torch.equal(generation.latents, run(pipeline, REQUEST).latents)


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.bfloat16)],
    ids=str,
)
def test_half_precision_keeps_float16_out_of_text_encoder_and_autoencoder(
    pipeline: SanaPipeline, tiny_checkpoint: Path, dtype: torch.dtype, wide: torch.dtype
) -> None:
    half = pipeline_of(tiny_checkpoint, dtype)
    assert next(half.transformer.parameters()).dtype == dtype
    assert next(half.autoencoder.parameters()).dtype == wide
    assert half.text_encoder is not None
    assert half.text_encoder.encode("a cat").dtype == wide
    generation = run(half, REQUEST)
    assert generation.latents.dtype == torch.float32
    assert relative_error(generation.latents, run(pipeline, REQUEST).latents) < 0.1
    assert len(half.decode(generation)) == 1


def test_a_variant_named_by_the_spec_is_loaded(tiny_copy: Path, pipeline: SanaPipeline) -> None:
    for component in ("transformer", "vae", "text_encoder"):
        (path,) = (tiny_copy / component).glob("*.safetensors")
        state = {name: tensor * 2 for name, tensor in load_file(path).items()}
        save_file(state, path.with_suffix(".twice.safetensors"))
    spec = describe(tiny_copy).model_copy(update={"variant": "twice"})
    twice = load(spec, device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(twice, SanaPipeline)
    weight = pipeline.transformer.proj_out.weight
    assert torch.equal(twice.transformer.proj_out.weight, weight * 2)


def truncate(path: Path, tensor: str) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def leave_out(path: Path, tensor: str) -> None:
    save_file({name: value for name, value in load_file(path).items() if name != tensor}, path)


def reshape(path: Path, tensor: str) -> None:
    save_file({**load_file(path), tensor: torch.zeros(7)}, path)


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "damaged or truncated"),
        (leave_out, r"lacks 1 tensor \('{tensor}'\)"),
        (reshape, r"tensor '{tensor}' has shape \[7\], the configuration asks for"),
    ],
)
def test_damage_names_component_file_and_tensor(
    tiny_copy: Path, component: str, damage: Callable[[Path, str], None], message: str
) -> None:
    (path,) = (tiny_copy / component).glob("*.safetensors")
    # The encoder half of the autoencoder is not loaded, so damage there goes unnoticed.
    tensor = next(name for name in load_file(path) if not name.startswith("encoder."))
    damage(path, tensor)
    expected = rf"{component}/{path.name}: " + message.replace("{tensor}", tensor)
    with pytest.raises(CheckpointError, match=expected) as caught:
        pipeline_of(tiny_copy)
    assert "\n" not in str(caught.value)


def test_a_text_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    narrow = write_checkpoint(
        tmp_path / "narrow",
        transformer={"caption_channels": 16},
    )
    with pytest.raises(CheckpointError, match=r"text_encoder.config\.json: hidden_size is 32, but"):
        pipeline_of(narrow)


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "tokenizer"])
def test_a_missing_component_is_named(tiny_copy: Path, component: str) -> None:
    spec = describe(tiny_copy)
    shutil.rmtree(tiny_copy / component)
    with pytest.raises(CheckpointError, match=component):
        SanaPipeline.load(spec, device="cpu", dtype=torch.float32)
