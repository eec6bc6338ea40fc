"""Requests to a tiny Sana pipeline, and how far two results are apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.catalogue import describe
from models.pipeline import ImageRequest
from models.sana.generation import SanaGeneration
from models.sana.pipeline import SanaPipeline

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
