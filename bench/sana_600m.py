"""The whole pipeline at the true 600M configuration and 512 px, against diffusers.

No published weights are needed: a checkpoint folder is written with random ones, the transformer
and the autoencoder at their real sizes. The text encoder has Gemma-2-2B's width but two layers, and
the demo model's vocabulary, since prompts are encoded once and would only blur the comparison.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bench import sana_pipeline
from bench.precision import DTYPE_NAME
from bench.run import table
from models.catalogue import discover

STEPS = 4

TRANSFORMER = {
    "num_layers": 28,
    "num_attention_heads": 36,
    "attention_head_dim": 32,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 2304,
    "sample_size": 16,
    "interpolation_scale": None,
}
BLOCKS = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
AUTOENCODER = {
    "encoder_block_types": BLOCKS,
    "decoder_block_types": BLOCKS,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "upsample_block_type": "interpolate",
    "downsample_block_type": "conv",
    "scaling_factor": 0.41407,
}


def write_checkpoint(folder: Path) -> Path:
    """A SanaPipeline folder of about 1.8 GB with random bfloat16 weights; returns it."""
    import torch
    from diffusers import (
        AutoencoderDC,
        DPMSolverMultistepScheduler,
        SanaPipeline,
        SanaTransformer2DModel,
    )
    from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

    tokenizer = AutoTokenizer.from_pretrained(discover(["sana-demo"])[0].source / "tokenizer")
    torch.manual_seed(0)
    text = Gemma2Config(vocab_size=len(tokenizer), num_hidden_layers=2)
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    pipeline = SanaPipeline(
        tokenizer,
        Gemma2Model(text).to(torch.bfloat16),
        AutoencoderDC(**AUTOENCODER).to(torch.bfloat16),
        SanaTransformer2DModel(**TRANSFORMER).to(torch.bfloat16),
        scheduler,
    )
    pipeline.save_pretrained(folder)
    return folder


def run(rounds: int = 3, threads: int = 1) -> dict[str, Any]:
    """Milliseconds and ratios of the whole pipeline and of a step."""
    with tempfile.TemporaryDirectory() as folder:
        return sana_pipeline.run(
            rounds,
            write_checkpoint(Path(folder) / "sana-600m-random"),
            threads,
            dtype=DTYPE_NAME,
            steps=STEPS,
            batching=False,
        )


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(table(run(arguments.rounds, arguments.threads)))


if __name__ == "__main__":
    main()
