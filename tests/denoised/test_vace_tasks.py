"""Every VACE task through a real server and real HTTP, judged by the pixels of the clip.

One server with the bundled clip model serves all tests. Sources are drawn here and go up without
loss; results come down as MP4 of the best quality. What is to be kept, or taken from a source, is
left out of the prompt, so that it cannot have come from there.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from denoised.client import Client
from models.demo.colours import COLOURS
from models.demo.wan.clip_judge import read_clip
from models.demo.wan.clips import FRAMES, SIDE
from models.wan.autoencoder import WanAutoencoder
from models.wan.autoencoder_loading import load_autoencoder
from tests.denoised.conftest import RunningServer, serving
from tests.denoised.vace_judging import (
    NEAR,
    assert_kept,
    assert_shows,
    colour_of,
    distances,
    thing_colour,
)
from tests.denoised.vace_scenes import (
    GREEN_SQUARE,
    RED_CIRCLE,
    another,
    data_url,
    drawn,
    everywhere,
    mask_picture,
    motion_of,
    moving_box,
    prompt_of,
    reference_of,
    to_clip,
    upload,
    way_box,
)

FOLDER = Path(__file__).parents[2] / "models/demo/wan/wan-vace-demo"

SCENES = pytest.mark.parametrize("scene", [RED_CIRCLE, GREEN_SQUARE], ids=["circle", "square"])
CIRCLE = pytest.mark.parametrize("scene", [RED_CIRCLE], ids=["circle"])
SQUARE = pytest.mark.parametrize("scene", [GREEN_SQUARE], ids=["square"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("clips") / "data", FOLDER) as running:
        yield running


@pytest.fixture(scope="module")
def autoencoder() -> WanAutoencoder:
    return load_autoencoder(FOLDER / "vae", device=torch.device("cpu"))


def make(
    client: Client, prompt: str, seed: int = 1, *, model: str = "wan-vace-demo", **fields: Any
) -> np.ndarray:
    """The frames of the clip that a job makes of these fields."""
    given = {"prompt": prompt, "seed": seed, "output_quality": 100, **fields}
    job = client.submit(model, given)
    list(client.watch(job.id))
    job = client.get(job.id)
    assert job.status == "succeeded", job.error
    [output] = job.outputs
    assert (output.content_type, output.num_frames) == ("video/mp4", FRAMES)
    with av.open(io.BytesIO(client.download(job.id))) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == FRAMES
    return np.stack(frames)


@SCENES
def test_text_alone_makes_what_the_prompt_says(client, scene):
    assert_shows(make(client, prompt_of(scene)), motion_of(scene))


@SCENES
def test_a_reference_picture_lends_its_colour_to_what_the_words_leave_open(client, scene):
    """The bundled model is too small to copy shapes; the words are the same for both pictures."""
    other = replace(scene, colour="green" if scene.colour == "red" else "red")
    words = prompt_of(scene, "thing")
    for shown, absent in ((scene, other), (other, scene)):
        frames = make(client, words, reference_images=[reference_of(shown)])
        seen = thing_colour(frames, scene.background)
        assert abs(seen - colour_of(shown)).sum() < abs(seen - colour_of(absent)).sum() / 2


def test_reference_pictures_are_taken_in_the_order_given(tmp_path):
    """The bundled model's own limit is one; a copy of it may take two, and they are not alike."""
    folder = tmp_path / "wan-vace-two"
    shutil.copytree(FOLDER, folder)
    spec = json.loads((folder / "denoised.json").read_text())
    spec["id"] = "wan-vace-two"
    spec["video"]["max_reference_images"] = 2
    (folder / "denoised.json").write_text(json.dumps(spec))
    two = [reference_of(RED_CIRCLE), reference_of(GREEN_SQUARE)]
    with serving(tmp_path / "data", folder) as server, Client(server.url) as client:

        def clip(*references: str) -> np.ndarray:
            given = {"prompt": "a thing moving right", "reference_images": list(references)}
            given["num_inference_steps"] = 2  # enough to tell what the model was given
            return make(client, model="wan-vace-two", **given)

        forwards, backwards = clip(*two), clip(*reversed(two))
        assert not np.array_equal(forwards, backwards)
        assert not np.array_equal(forwards, clip(two[0]))
        assert np.array_equal(forwards, clip(*two))


@SCENES
def test_a_grey_control_clip_guides_every_frame(client, tmp_path, scene):
    source = drawn(scene)
    control = upload(client, tmp_path, source)
    frames = make(client, prompt_of(scene), control_video=control, control="grey")
    assert_shows(frames, motion_of(scene))
    off = distances(frames, source)
    assert len(off) == FRAMES
    assert max(off) <= NEAR


def test_a_ready_made_control_clip_of_another_size_and_length_guides_every_frame(client, tmp_path):
    """Given grey, four times as large and twice as long, so that half of it is used."""
    source = drawn(RED_CIRCLE)
    grey = (source @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
    large = grey.repeat(4, axis=1).repeat(4, axis=2)[..., None].repeat(3, axis=-1)
    control = upload(client, tmp_path, np.concatenate([large, large[-2::-1]]))
    frames = make(client, prompt_of(RED_CIRCLE), control_video=control, num_frames=FRAMES)
    assert_shows(frames, motion_of(RED_CIRCLE))
    assert max(distances(frames, source)) <= NEAR


def test_a_layout_is_the_control_clip_of_its_boxes(client, tmp_path):
    """The demo was not trained on boxes, so that only what the model is given can be judged."""
    box = {"start": [0.125, 0.25, 0.5, 0.75], "end": [0.5, 0.25, 0.875, 0.75]}
    control = np.full((FRAMES, SIDE, SIDE, 3), 255, dtype=np.uint8)
    for index, frame in enumerate(control):
        left = 8 + 24 * index // (FRAMES - 1)
        frame[16:48, left : left + 24] = 0
        frame[18:46, left + 2 : left + 22] = 255
    prompt = prompt_of(RED_CIRCLE)
    by_boxes = make(client, prompt, control="layout", layout=[box])
    by_hand = make(client, prompt, control_video=upload(client, tmp_path, control))
    assert np.array_equal(by_boxes, by_hand)
    elsewhere = {"start": box["end"], "end": box["start"]}
    assert not np.array_equal(by_boxes, make(client, prompt, control="layout", layout=[elsewhere]))


@SCENES
def test_a_masked_region_is_painted_anew_and_the_rest_is_kept(client, tmp_path, autoencoder, scene):
    source, box = drawn(scene), way_box(scene)
    wanted = another(scene)
    frames = make(
        client,
        prompt_of(wanted, ground=False),
        seed=2,
        video=upload(client, tmp_path, source),
        mask=data_url(mask_picture(box)),
    )
    assert_kept(frames, source, everywhere() | box, autoencoder)
    assert_shows(frames, motion_of(wanted))


@SCENES
def test_without_a_source_nothing_of_it_is_kept(client, autoencoder, scene):
    """What the tests of kept regions would say if the source never reached the model."""
    source, box = drawn(scene), way_box(scene)
    frames = make(client, prompt_of(another(scene), ground=False))
    with pytest.raises(AssertionError):
        assert_kept(frames, source, everywhere() | box, autoencoder)


def test_a_mask_may_be_a_clip_and_guidance_may_come_with_it(client, tmp_path, autoencoder):
    """The mask follows the thing, and a grey clip says what is to be painted under it."""
    source, wanted = drawn(RED_CIRCLE), another(RED_CIRCLE)
    made = moving_box(RED_CIRCLE)
    frames = make(
        client,
        prompt_of(wanted, ground=False),
        video=upload(client, tmp_path, source),
        mask=upload(client, tmp_path, mask_picture(made)),
        control_video=upload(client, tmp_path, drawn(wanted)),
        control="grey",
    )
    assert_kept(frames, source, made, autoencoder)
    assert motion_of(wanted).shape == read_clip(to_clip(frames))[0].shape
    assert max(distances(frames, source)) <= NEAR


@CIRCLE
def test_outpainting_keeps_the_inside_and_continues_it(client, tmp_path, autoencoder, scene):
    source = drawn(scene)
    # A quarter of 42 pixels on each side makes 64 of them, give or take the rounding.
    inner = source[:, 11:53, 11:53]
    sides = {"left": 0.25, "right": 0.25, "top": 0.25, "bottom": 0.25}
    frames = make(
        client,
        prompt_of(scene),
        video=upload(client, tmp_path, inner),
        outpaint=sides,
    )
    made = everywhere(True)
    made[:, 11:53, 11:53] = False
    assert_kept(frames, source, made, autoencoder)
    assert_shows(frames, motion_of(scene))


@SCENES
def test_a_first_frame_is_continued(client, autoencoder, scene):
    source = drawn(scene)
    frames = make(client, prompt_of(scene, ground=False), first_frame=data_url(source[0]))
    assert_kept(frames[:1], source[:1], everywhere()[:1], autoencoder)
    assert_shows(frames, motion_of(scene))


@SCENES
def test_a_last_frame_is_arrived_at(client, autoencoder, scene):
    source = drawn(scene)
    frames = make(client, prompt_of(scene, ground=False), last_frame=data_url(source[-1]))
    made = everywhere(True)
    made[-1] = False
    assert_kept(frames, source, made, autoencoder)
    assert_shows(frames, motion_of(scene))


@SQUARE
def test_between_a_first_and_a_last_frame_the_thing_moves(client, autoencoder, scene):
    source = drawn(scene)
    ends = {"first_frame": data_url(source[0]), "last_frame": data_url(source[-1])}
    frames = make(client, prompt_of(scene, ground=False), **ends)
    made = everywhere(True)
    made[[0, -1]] = False
    assert_kept(frames, source, made, autoencoder)
    assert_shows(frames, motion_of(scene))


@SQUARE
def test_a_clip_is_extended_at_its_own_speed(client, tmp_path, autoencoder, scene):
    source = drawn(scene)
    first = upload(client, tmp_path, source[:5])
    frames = make(client, prompt_of(scene, ground=False), first_clip=first)
    made = everywhere()
    made[5:] = True
    assert_kept(frames, source, made, autoencoder)
    assert_shows(frames, motion_of(scene))


@CIRCLE
def test_a_clip_is_led_up_to(client, tmp_path, autoencoder, scene):
    source = drawn(scene)
    last = upload(client, tmp_path, source[-4:])
    frames = make(client, prompt_of(scene, ground=False), last_clip=last)
    made = everywhere()
    made[:-4] = True
    assert_kept(frames, source, made, autoencoder)
    assert_shows(frames, motion_of(scene))


def test_a_first_clip_and_a_last_clip_are_joined(client, tmp_path, autoencoder):
    source = drawn(RED_CIRCLE)
    frames = make(
        client,
        prompt_of(RED_CIRCLE, ground=False),
        first_clip=upload(client, tmp_path, source[:3]),
        last_clip=upload(client, tmp_path, source[-3:]),
    )
    made = everywhere()
    made[3:-3] = True
    assert_kept(frames, source, made, autoencoder)
    assert_shows(frames, motion_of(RED_CIRCLE))


def test_a_first_frame_and_a_last_clip_compose(client, tmp_path, autoencoder):
    source = drawn(GREEN_SQUARE)
    frames = make(
        client,
        prompt_of(GREEN_SQUARE, ground=False),
        first_frame=data_url(source[0]),
        last_clip=upload(client, tmp_path, source[-4:]),
    )
    made = everywhere()
    made[1:-4] = True
    assert_kept(frames, source, made, autoencoder)
    assert_shows(frames, motion_of(GREEN_SQUARE))


@CIRCLE
def test_a_mask_and_a_reference_compose(client, tmp_path, autoencoder, scene):
    source, box = drawn(scene), way_box(scene)
    wanted = another(scene)
    frames = make(
        client,
        prompt_of(wanted, ground=False),
        video=upload(client, tmp_path, source),
        mask=data_url(mask_picture(box)),
        reference_images=[reference_of(wanted)],
    )
    assert_kept(frames, source, everywhere() | box, autoencoder)
    assert_shows(frames, motion_of(wanted))


@SQUARE
def test_a_grey_control_and_a_first_frame_compose(client, tmp_path, autoencoder, scene):
    source = drawn(scene)
    frames = make(
        client,
        prompt_of(scene),
        control_video=upload(client, tmp_path, source),
        control="grey",
        first_frame=data_url(source[0]),
    )
    assert_kept(frames[:1], source[:1], everywhere()[:1], autoencoder)
    assert_shows(frames, motion_of(scene))
    assert max(distances(frames, source)) <= NEAR


def test_what_is_made_has_the_colours_of_the_prompt(client):
    """The judge reads names; this looks at the pixels themselves."""
    frames = make(client, prompt_of(RED_CIRCLE)).astype(float)
    corners = frames[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert abs(corners - np.array(COLOURS["blue"])).mean() < 25
    red = abs(frames - np.array(COLOURS["red"])).max(-1) < 60
    columns = np.where(red)
    start, end = (columns[2][columns[0] == index].mean() for index in (0, FRAMES - 1))
    assert end - start > 10
