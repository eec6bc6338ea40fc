"""What it costs to start: imports of each process, and process start to the first finished latents.

Every figure comes from a fresh interpreter with a warm page cache; the contestants take turns.
Ours and diffusers load the same checkpoint and take the same 20 guided steps, once with prompt
embeddings given (text encoder aside) and once from a prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.run import table

_REPORT = """
import json, time
status = open("/proc/self/status").read()
peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps({"at": time.monotonic(), "peak_mb": peak}))
"""

_OURS = """
import torch
from pathlib import Path
from models.catalogue import describe
from models.pipeline import ImageRequest
from models.sana.pipeline import SanaPipeline
spec = describe(Path(FOLDER))
pipeline = SanaPipeline.load(spec, device="cpu", dtype=torch.float32, text_encoder=WITH_TEXT)
request = ImageRequest(PROMPT, "", SIZE, SIZE, 20, 4.5, 1, 0, "dpm-solver++")
if WITH_TEXT:
    generation = pipeline.prepare(request)
else:
    width = pipeline.transformer.config.caption_channels
    generation = pipeline.begin(request, torch.ones(12, width), torch.ones(1, width))
while not generation.is_done:
    pipeline.step([generation])
"""

_DIFFUSERS = """
import torch
from diffusers import SanaPipeline
given = {} if WITH_TEXT else {"text_encoder": None, "tokenizer": None}
pipeline = SanaPipeline.from_pretrained(FOLDER, dtype=torch.float32, **given)
pipeline.set_progress_bar_config(disable=True)
if WITH_TEXT:
    text = {"prompt": PROMPT}
else:
    width = pipeline.transformer.config.caption_channels
    embeds, mask = torch.ones(1, 12, width), torch.ones(1, 12)
    text = dict(
        prompt_embeds=embeds,
        prompt_attention_mask=mask,
        negative_prompt=None,
        negative_prompt_embeds=embeds,
        negative_prompt_attention_mask=mask,
    )
pipeline(
    **text,
    width=SIZE,
    height=SIZE,
    num_inference_steps=20,
    guidance_scale=4.5,
    generator=torch.Generator().manual_seed(0),
    use_resolution_binning=False,
    output_type="latent",
)
"""


def run(rounds: int = 5, checkpoint: Path | None = None, threads: int = 1) -> dict[str, Any]:
    """Medians over `rounds` of start times (seconds) and peak memory (MB), with ratios.

    `checkpoint` is the bundled `sana-demo` unless given.
    """
    from models.catalogue import describe, discover

    spec = discover(["sana-demo"])[0] if checkpoint is None else describe(checkpoint)
    constants = (
        f"FOLDER = {str(spec.source)!r}\nSIZE = {spec.width.default}\n"
        "PROMPT = 'a red circle on a blue background'\n"
    )
    # The worker's process module imports the model code when it loads a model; both count.
    programs = {
        "import torch": "import torch",
        "worker: process and Sana": "import workers.process, models.sana.pipeline",
        "api: server.app": "import server.app",
    }
    latents = {
        f"{who}, {label}": f"{constants}WITH_TEXT = {with_text}\n{code}"
        for label, with_text in (("text encoder aside", False), ("with text encoder", True))
        for who, code in (("ours", _OURS), ("diffusers", _DIFFUSERS))
    }
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in (*programs, *latents)}
    for round_number in range(rounds + 1):
        for name, code in (programs | latents).items():
            sample = _start(code, threads)
            if round_number:  # the first round fills the page cache
                samples[name].append(sample)
    return {
        "model": spec.id,
        "threads": threads,
        "rounds": rounds,
        "imports": [_row(name, samples[name], samples["import torch"]) for name in programs],
        "process start to first latents": [
            _row(name, samples[name], samples[name.replace("ours", "diffusers")])
            for name in latents
        ],
    }


def _start(code: str, threads: int) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code + _REPORT],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"a start failed:\n{code}\n{done.stderr[-2000:]}")
    report = json.loads(done.stdout.splitlines()[-1])
    # Both processes read the same monotonic clock, so interpreter start counts too.
    return {"seconds": report["at"] - started, "peak_mb": report["peak_mb"]}


def _row(
    name: str, own: list[dict[str, float]], baseline: list[dict[str, float]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"what": name}
    for key in ("seconds", "peak_mb"):
        values = [sample[key] for sample in own]
        ratios = [a[key] / b[key] for a, b in zip(own, baseline, strict=True)]
        row[key] = round(statistics.median(values), 3)
        row[f"{key}_ratio"] = round(statistics.median(ratios), 3)
    return row


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, help="a diffusers folder; default: sana-demo")
    arguments = parser.parse_args()
    print(table(run(arguments.rounds, arguments.checkpoint, arguments.threads)))


if __name__ == "__main__":
    main()
