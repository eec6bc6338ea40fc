"""Tiny random Sana checkpoints, written by diffusers itself, for all tests that load one.

The folder has the layout of a published checkpoint; the weights are random but scaled so that every
part (guidance, text, time, position) moves the output. A few hundred kilobytes, a second to write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

from models.sana.text_encoder import COMPLEX_HUMAN_INSTRUCTION

HIDDEN_SIZE = 32

TRANSFORMER: dict[str, Any] = {
    "in_channels": 32,
    "out_channels": 32,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": HIDDEN_SIZE,
    "mlp_ratio": 2.5,
    "sample_size": 4,
    "patch_size": 1,
    "norm_eps": 1e-6,
    "norm_elementwise_affine": False,
}

AUTOENCODER: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 8,
    "encoder_block_types": ["ResBlock"] * 4 + ["EfficientViTBlock"] * 2,
    "decoder_block_types": ["ResBlock"] * 4 + ["EfficientViTBlock"] * 2,
    "encoder_block_out_channels": [8, 8, 16, 16, 32, 32],
    "decoder_block_out_channels": [8, 8, 16, 16, 32, 32],
    "encoder_layers_per_block": [0, 1, 1, 1, 1, 1],
    "decoder_layers_per_block": [0, 1, 1, 1, 1, 1],
    "encoder_qkv_multiscales": [[], [], [], [], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [], [5], [5]],
    "scaling_factor": 0.41407,
}

TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    # Shorter than the instruction, so that a mistaken window shows.
    "sliding_window": 48,
}

_CORPUS = (
    *COMPLEX_HUMAN_INSTRUCTION,
    "a red circle on a blue background",
    "a small yellow square on a white background at the top left",
    "a photo of a fluffy cat sitting on a wooden table",
)


def write_checkpoint(
    folder: Path,
    *,
    transformer: dict[str, Any] | None = None,
    scheduler: str = "dpm-solver++",
    seed: int = 0,
) -> Path:
    """Write a SanaPipeline checkpoint to `folder` and return it.

    `transformer` overrides configuration entries; `scheduler` is "dpm-solver++" or "flow-euler".
    """
    from diffusers import (
        AutoencoderDC,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        SanaPipeline,
        SanaTransformer2DModel,
    )
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = gemma_tokenizer()
    torch.manual_seed(seed)
    dit = SanaTransformer2DModel(**{**TRANSFORMER, **(transformer or {})})
    vae = AutoencoderDC(**AUTOENCODER)
    text = Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), **TEXT_ENCODER))
    for module, scale in ((dit, 0.2), (vae, 0.1), (text, 0.1)):
        _randomise(module, scale)
    flow = (
        DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        )
        if scheduler == "dpm-solver++"
        else FlowMatchEulerDiscreteScheduler(shift=3.0)
    )
    pipeline = SanaPipeline(tokenizer, text, vae, dit, flow)
    pipeline.save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Set top-level entries of a JSON object file."""
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps(value))


def gemma_tokenizer() -> Any:
    """A GemmaTokenizer of 400 entries: BPE with byte fallback, spaces as U+2581, BOS first."""
    from transformers import GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trained = Tokenizer(BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    trained.decoder = decoders.ByteFallback()
    # Whole sentences are single BPE words in this form, as in Gemma; splitting the corpus by words
    # only keeps training from memorising them.
    words = [part for line in _CORPUS for part in line.replace(" ", " ▁").split(" ")]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    trained.train_from_iterator(words, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return GemmaTokenizer(vocab=model["vocab"], merges=merges, add_bos_token=True)


@torch.no_grad()
def _randomise(module: torch.nn.Module, scale: float) -> None:
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=scale)
        elif name.endswith("bias"):
            parameter.normal_(std=0.02)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.05)
