"""Tiny random Wan-VACE checkpoints, written by diffusers itself, for all tests that load one.

The folder has the layout of a published checkpoint; the weights are random but large enough for
text, time, context and position to move the output.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config.model_spec import ModelSpec
from models.catalogue import OVERRIDES_FILE, describe
from models.demo.wan.clip_tokenizer import save_tokenizer
from models.pipeline import Clip, VideoRequest
from models.wan.generation import WanVaceGeneration
from models.wan.pipeline import WanVacePipeline
from tests.models.wan.tiny_transformer import WIDE, make_reference

AUTOENCODER: dict[str, Any] = {
    "base_dim": 4,
    "z_dim": 16,
    "dim_mult": [1, 2, 2, 3],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}

REQUEST = VideoRequest(
    prompt="a red circle moving left on a blue background",
    negative_prompt="grey",
    width=48,
    height=32,
    num_frames=9,
    fps=16.0,
    num_inference_steps=6,
    guidance_scale=5.0,
    flow_shift=3.0,
    conditioning_scale=(1.0,),
    seed=7,
    sampler="unipc",
)


def write_checkpoint(folder: Path, *, with_limits: bool = True) -> Path:
    """Write a WanVACEPipeline checkpoint to `folder` and return it."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanVACEPipeline
    from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

    save_tokenizer(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    transformer = make_reference({**WIDE, "num_layers": 2, "vace_layers": [0]})
    vae = AutoencoderKLWan(**AUTOENCODER)
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=512,
            d_model=WIDE["text_dim"],
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = WanVACEPipeline(
        tokenizer=tokenizer,
        text_encoder=text.eval(),
        vae=vae,
        scheduler=scheduler,
        transformer=transformer,
    )
    pipeline.save_pretrained(folder)
    if with_limits:
        small = {"default": 48, "minimum": 16, "maximum": 128, "multiple_of": 16}
        limits = {"width": small, "height": {**small, "default": 32}}
        (folder / OVERRIDES_FILE).write_text(json.dumps(limits))
    return folder


def load(source: Path, **changes: Any) -> WanVacePipeline:
    spec: ModelSpec = describe(source).model_copy(update=changes)
    return WanVacePipeline.load(spec, device="cpu", dtype=torch.float32)


def request(**changes: Any) -> VideoRequest:
    return dataclasses.replace(REQUEST, **changes)


def clip(count: int = 9, height: int = 32, width: int = 48, seed: int = 0) -> Clip:
    """Smooth random frames: large squares of colour, so that resizing keeps them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return Clip(np.ascontiguousarray(coarse[:, rows][:, :, columns]), 16.0)


def run(pipeline: WanVacePipeline, asked: VideoRequest) -> WanVaceGeneration:
    generation = pipeline.prepare(asked)
    while not generation.is_done:
        pipeline.step([generation])
    return generation
