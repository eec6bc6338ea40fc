"""The engine over our Sana pipeline: pictures from batches, and from recipes."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_harness import CPU, AtOnce, MemoryBlobs, MemoryRecorder, MemorySink, claimed
from PIL import Image

from jobs.blobs import FileBlobStore
from jobs.types import ClaimedJob, Status
from models.catalogue import discover
from models.loading import load
from models.pipeline import Pipeline
from workers.batch_limits import BatchLimits
from workers.checkpoints import Checkpoints
from workers.engine import Engine
from workers.inputs import InputReader
from workers.outputs import read_recipe
from workers.reading import ReadingQueue
from workers.recipe import Recipes
from workers.results import ResultWriter
from workers.storing import StoringQueue


@pytest.fixture(scope="module")
def pipeline(tiny_sana: Path) -> Iterator[Pipeline]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    (spec,) = discover([str(tiny_sana)])
    yield load(spec, device=CPU.torch_device, dtype=CPU.torch_dtype)
    torch.set_num_threads(threads)


class AlwaysLarge(BatchLimits):
    """Fills every batch."""

    def limit(self, key: object) -> int:
        return 16


def generate(pipeline: Pipeline, *jobs: ClaimedJob) -> list[list[bytes]]:
    """The files of jobs that were all resident together."""
    sink, blobs = MemorySink(), MemoryBlobs()
    model = pipeline.spec.id
    recipes = {model: Recipes(model, "sha256:00", CPU, pipeline.residency)}
    writer = ResultWriter(blobs, recipes)
    engine = Engine(
        {model: pipeline},
        sink,
        ReadingQueue(
            InputReader(FileBlobStore(Path("nowhere")), max_frames=1),
            [AtOnce()],
            stuck_seconds=300.0,
            clock=time.monotonic,
        ),
        StoringQueue(writer, AtOnce(), stuck_seconds=300.0, clock=time.monotonic),
        Checkpoints(MemoryBlobs(), MemoryRecorder(), recipes, AtOnce(), every_seconds=1e9),
        CPU,
        AlwaysLarge(16),
        capacity=64,
        max_attempts=1,
        preview_seconds=0.01,
    )
    for job in jobs:
        engine.admit(job)
    while not engine.is_idle:
        engine.turn()
    files = []
    for job in jobs:
        outcome = sink.outcomes[job.id]
        assert outcome.status is Status.SUCCEEDED, outcome.failure
        files.append([blobs[output.key] for output in outcome.outputs])
    return files


def request(pipeline: Pipeline, prompt: str, **fields: Any) -> ClaimedJob:
    return claimed(prompt, model=pipeline.spec.id, width=128, height=128, **fields)


def grey_levels_apart(first: bytes, second: bytes) -> int:
    one, other = (np.asarray(Image.open(io.BytesIO(f)), dtype=int) for f in (first, second))
    return int(np.abs(one - other).max())


def test_members_of_a_batch_look_like_their_solo_runs(pipeline: Pipeline) -> None:
    jobs = [
        request(pipeline, "a red circle", num_inference_steps=4),
        request(pipeline, "a blue square on a white background", num_inference_steps=7),
        request(pipeline, "x", num_inference_steps=5, sampler="flow-euler", guidance_scale=2.0),
        request(pipeline, "a cat", num_inference_steps=6, num_images=3, negative_prompt="blurry"),
        request(pipeline, "a red circle", num_inference_steps=4, guidance_scale=9.0),
    ]
    together = generate(pipeline, *jobs)
    for job, files in zip(jobs, together, strict=True):
        (alone,) = generate(pipeline, job)
        assert len(files) == job.input["num_images"]
        for file, own in zip(files, alone, strict=True):
            assert grey_levels_apart(file, own) <= 1


def test_a_deterministic_job_gives_the_same_bytes_in_any_company(pipeline: Pipeline) -> None:
    job = request(pipeline, "a red circle", deterministic=True, seed=3)
    others = [request(pipeline, f"number {n}") for n in range(3)]
    (alone,) = generate(pipeline, job)
    crowded = generate(pipeline, others[0], job, *others[1:])[1]
    assert alone == crowded


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_resubmitting_a_recipe_gives_that_picture(
    pipeline: Pipeline, output_format: str, tmp_path: Path
) -> None:
    job = request(pipeline, "a cat", num_images=3, output_format=output_format, seed=11)
    (files,) = generate(pipeline, job)
    path = tmp_path / "picture"
    path.write_bytes(files[2])
    recipe = read_recipe(path)
    assert recipe["input"]["seed"] == 13
    again = claimed(model=recipe["model"], **recipe["input"])
    ((file,),) = generate(pipeline, again)
    assert grey_levels_apart(file, files[2]) <= (1 if output_format == "png" else 16)
