"""Write the trained parts as one checkpoint: `python -m models.demo.wan.export ...`.

States of the trainings come in; a folder in diffusers' layout comes out, in bfloat16 but for the
autoencoder's statistics, with the transformer as Q8_0 and Q4_K_M GGUF beside it, `denoised.json`
(the limits that were seen to work) and `preview.safetensors` (the linear map from latents to
colours, fitted here by least squares).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.demo.training import load_state
from models.demo.wan.captions import random_motion
from models.demo.wan.clips import draw_scenes, random_scene
from models.demo.wan.train_autoencoder import CONFIG as AUTOENCODER
from models.demo.wan.train_autoencoder import load_autoencoder
from models.demo.wan.train_transformer import CONFIG as TRANSFORMER
from models.latent_preview import fit_colours
from models.wan.autoencoder import WanAutoencoder
from models.wan.gguf_convert import convert_to_gguf
from models.wan.transformer_names import to_diffusers
from models.weights.gguf.file_type import FileType

NAME = "wan-vace-demo"
QUANTISED = (FileType.Q8_0, FileType.Q4_K_M)
FLOW_SHIFT = 3.0
# Clips from which the preview map is fitted.
MEASURED = 1024

_INDEX = {
    "_class_name": "WanVACEPipeline",
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "WanVACETransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
_SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "final_sigmas_type": "zero",
    "flow_shift": FLOW_SHIFT,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "bh2",
    "thresholding": False,
    "use_flow_sigmas": True,
}
_SIDE = {"default": 64, "minimum": 64, "maximum": 64, "multiple_of": 16}
_SPEC = {
    "id": NAME,
    "description": "A tiny Wan-VACE trained on moving shapes, for trying everything out on a CPU.",
    "width": _SIDE,
    "height": _SIDE,
    "num_inference_steps": {"default": 20, "minimum": 1, "maximum": 100},
    "negative_prompt": "",
    "guidance_scale": {"default": 2.5, "minimum": 1.0, "maximum": 20.0},
    "video": {
        "num_frames": {"default": 9, "minimum": 9, "maximum": 9},
        "fps": {"default": 8.0, "minimum": 1.0, "maximum": 60.0},
        "max_reference_images": 1,
        "max_pixels": 64 * 64 * 9,
    },
}


@torch.no_grad()
def measure(autoencoder: WanAutoencoder, count: int = MEASURED) -> tuple[Tensor, Tensor]:
    """Latents [count, 16, 3, 8, 8] of clips as the transformer is trained on, and those clips."""
    rng = random.Random("measured clips")
    motions = [random_motion(rng) for _ in range(count)]
    clips = draw_scenes([random_scene(motion, size, rng) for motion, size in motions])
    latents = [autoencoder.encode(part, latents_at_once=2) for part in clips.split(32)]
    return torch.cat(latents), clips


def write_autoencoder(
    out: Path, state: Path, statistics: dict[str, list[float]]
) -> tuple[Tensor, Tensor]:
    """Write the folder of the autoencoder; returns normalised latents and the clips they show.

    `statistics` are those that the transformer was trained with.
    """
    autoencoder = load_autoencoder(state)
    latents, clips = measure(autoencoder)
    mean, std = (torch.tensor(statistics[name]) for name in ("latents_mean", "latents_std"))
    values = asdict(AUTOENCODER) | statistics
    _write_json(out / "config.json", {"_class_name": "AutoencoderKLWan", **values})
    _write_weights(out / "diffusion_pytorch_model.safetensors", autoencoder.state_dict())
    shape = (1, -1, 1, 1, 1)
    return (latents - mean.view(shape)) / std.view(shape), clips


def export(out: Path, autoencoder: Path, text_encoder: Path, transformer: Path) -> None:
    """Write the checkpoint folder `out` from the three trainings."""
    state = load_state(transformer)
    weights = {to_diffusers(n): t for n, t in {**state["model"], **state["average"]}.items()}
    _write_weights(out / "transformer/diffusion_pytorch_model.safetensors", weights)
    config = {
        "_class_name": "WanVACETransformer3DModel",
        "num_attention_heads": TRANSFORMER.num_heads,
        "attention_head_dim": TRANSFORMER.head_dim,
        **asdict(TRANSFORMER),
    }
    del config["num_heads"], config["head_dim"]
    _write_json(out / "transformer/config.json", config)
    for file_type in QUANTISED:
        destination = out / f"{NAME}-{file_type.name}.gguf"
        destination.unlink(missing_ok=True)
        convert_to_gguf(out / "transformer", destination, file_type)

    statistics = {name: state[name] for name in ("latents_mean", "latents_std")}
    latents, clips = write_autoencoder(out / "vae", autoencoder, statistics)
    text_config = json.loads((text_encoder / "text_encoder/config.json").read_text("utf-8"))
    _write_json(out / "text_encoder/config.json", text_config | {"dtype": "bfloat16"})
    weights = load_file(text_encoder / "text_encoder/model.safetensors")
    _write_weights(out / "text_encoder/model.safetensors", weights)
    shutil.copytree(text_encoder / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    _write_json(out / "scheduler/scheduler_config.json", _SCHEDULER)
    _write_json(out / "model_index.json", _INDEX)
    _write_json(out / "denoised.json", _SPEC)

    # A latent shows the last of its frames best.
    frames = clips[:, :, [0, 4, 8]].transpose(1, 2).flatten(0, 1)
    weight, bias = fit_colours(latents.transpose(1, 2).flatten(0, 1), frames)
    _save(out / "preview.safetensors", {"weight": weight, "bias": bias})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    _save(path, {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()})


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write beside and rename, since a server may have the old file mapped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    # The library makes files that only their owner can read.
    partial.chmod(0o644)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Export the video demo's checkpoint.")
    parser.add_argument("--autoencoder", type=Path, required=True, help="its state file")
    parser.add_argument("--text-encoder", type=Path, required=True, help="folder of that training")
    parser.add_argument("--transformer", type=Path, required=True, help="its state file")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / NAME)
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
