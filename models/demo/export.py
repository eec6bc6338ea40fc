"""Write the trained parts as one checkpoint in diffusers' layout: `python -m models.demo.export`.

States of the three trainings come in; `model_index.json`, bfloat16 safetensors and configurations
come out, together with `denoised.json` (the limits that were seen to work) and
`preview.safetensors` (the linear map from latents to colours, fitted here by least squares).
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.demo import train_autoencoder, train_transformer
from models.demo.train_autoencoder import random_scenes
from models.demo.training import generator, load_state
from models.latent_preview import fit_colours

_SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "midpoint",
    "thresholding": False,
    "timestep_spacing": "linspace",
    "use_flow_sigmas": True,
}
_INDEX = {
    "_class_name": "SanaPipeline",
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "Gemma2Model"],
    "tokenizer": ["transformers", "GemmaTokenizer"],
    "transformer": ["diffusers", "SanaTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderDC"],
}
_SPEC = {
    "id": "sana-demo",
    "description": "A tiny Sana trained on coloured shapes, for trying everything out on a CPU.",
    "width": {"default": 256, "minimum": 256, "maximum": 256, "multiple_of": 32},
    "height": {"default": 256, "minimum": 256, "maximum": 256, "multiple_of": 32},
    "num_inference_steps": {"default": 20, "minimum": 1, "maximum": 100},
    "guidance_scale": {"default": 4.5, "minimum": 1.0, "maximum": 20.0},
}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    plain = {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}
    _save(path, plain)


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})
    # The library makes files that only their owner can read.
    path.chmod(0o644)


def export(out: Path, autoencoder: Path, text_encoder: Path, transformer: Path) -> None:
    """Write the checkpoint folder `out` from the three trainings."""
    state = load_state(transformer)
    scale: float = state["scale"]
    values = asdict(train_transformer.CONFIG)
    cross_dim = values["num_cross_attention_heads"] * values["cross_attention_head_dim"]
    values |= {"_class_name": "SanaTransformer2DModel", "cross_attention_dim": cross_dim}
    _write_json(out / "transformer/config.json", values)
    weights = {**state["model"], **state["average"]}
    _write_weights(out / "transformer/diffusion_pytorch_model.safetensors", weights)

    vae = train_autoencoder.load_autoencoder(autoencoder)
    values = {"_class_name": "AutoencoderDC", **asdict(train_autoencoder.CONFIG)}
    _write_json(out / "vae/config.json", values | {"scaling_factor": scale})
    _write_weights(out / "vae/diffusion_pytorch_model.safetensors", vae.state_dict())

    text_config = json.loads((text_encoder / "text_encoder/config.json").read_text("utf-8"))
    _write_json(out / "text_encoder/config.json", text_config | {"dtype": "bfloat16"})
    weights = load_file(text_encoder / "text_encoder/model.safetensors")
    _write_weights(out / "text_encoder/model.safetensors", weights)
    shutil.copytree(text_encoder / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    _write_json(out / "scheduler/scheduler_config.json", _SCHEDULER)
    _write_json(out / "model_index.json", _INDEX)
    _write_json(out / "denoised.json", _SPEC)

    with torch.no_grad():
        latents = torch.cat(
            [vae.encode(random_scenes(generator(0, step), 16, 256)) for step in range(16)]
        )
        pictures = torch.cat([vae.decode(part) for part in latents.split(16)])
    weight, bias = fit_colours(latents * scale, pictures)
    _save(out / "preview.safetensors", {"weight": weight, "bias": bias})


def main() -> None:
    parser = argparse.ArgumentParser(description="Export the demo checkpoint.")
    parser.add_argument("--autoencoder", type=Path, required=True, help="its state file")
    parser.add_argument("--text-encoder", type=Path, required=True, help="folder of that training")
    parser.add_argument("--transformer", type=Path, required=True, help="its state file")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "sana-demo")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    export(
        arguments.out,
        arguments.autoencoder,
        arguments.text_encoder,
        arguments.transformer,
    )
    total = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out}: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
