"""Continuous batching against one image at a time, the same Poisson arrivals for both.

Two engines over the same pipeline, one restricted to one image a step, take turns at every load, so
that ratios hold on a busy machine: images per second from the first arrival to the last picture,
and the seconds from a picture's arrival to its file. "Busy" arrivals come faster than one at a time
can serve, "calm" ones leave it idle a third of the time. Two models: the bundled one, and a tiny
one of random weights with four tokens an image, whose steps are all overhead. Goals: never more
than 3 % fewer images per second than one at a time; at least 3 times as many where steps are
overhead.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bench.engine_loop import EngineLoop, new_job, percentiles
from bench.goals import at_least
from config.model_spec import IntParameter, ModelSpec
from jobs.types import ClaimedJob, Priority
from models.catalogue import discover
from models.sana.checkpoint import SanaCheckpoint
from models.sana.pipeline import SanaPipeline
from models.sana.transformer import SanaTransformer

LOADS = {"busy": 8.0, "calm": 0.66}
"""Arrivals per time that one picture takes alone."""

LEAST_RATIO = 0.97
LEAST_RATIO_OF_OVERHEAD = 3.0
OVERHEAD_BOUND = "random weights, 4 tokens"

_WARM_UP = 32


def run(images: int = 32, rounds: int = 3) -> dict[str, Any]:
    """Ratios of batching to one at a time by model and load, and the figures behind them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (spec,) = discover(["sana-demo"])
        demo = SanaPipeline.load(spec, device="cpu", dtype=torch.float32)
        figures = {
            OVERHEAD_BOUND: _compare(_overhead_bound(demo), 2 * images, rounds, steps=12),
            "sana-demo, 64 tokens": _compare(demo, images, rounds, steps=6),
        }
    finally:
        torch.set_num_threads(threads)
    goals = []
    for model, rows in figures.items():
        for row in rows:
            is_overhead = model == OVERHEAD_BOUND and row["load"] == "busy"
            bound = LEAST_RATIO_OF_OVERHEAD if is_overhead else LEAST_RATIO
            goals.append(at_least(f"{model}, {row['load']}: ratio", row["ratio"], bound))
    return {**figures, "goals": goals}


def _overhead_bound(demo: SanaPipeline) -> SanaPipeline:
    """A narrow transformer with random weights for pictures of 64 x 64 pixels."""
    torch.manual_seed(0)
    config = dataclasses.replace(
        SanaCheckpoint.read(demo.spec.source).transformer,
        num_attention_heads=2,
        attention_head_dim=32,
        num_cross_attention_heads=2,
        cross_attention_head_dim=32,
        num_layers=12,
    )
    side = IntParameter(default=64, minimum=64, maximum=64, multiple_of=32)
    spec = demo.spec.model_copy(update={"id": "tiny", "width": side, "height": side})
    return SanaPipeline(
        spec,
        SanaCheckpoint.read(demo.spec.source),
        transformer=SanaTransformer(config).eval().requires_grad_(False),
        autoencoder=demo.autoencoder,
        text_encoder=demo.text_encoder,
        preview=None,
        device=torch.device("cpu"),
    )


def _compare(pipeline: SanaPipeline, images: int, rounds: int, steps: int) -> list[dict[str, Any]]:
    spec = pipeline.spec
    loops = {
        "batched": EngineLoop({spec.id: pipeline}, max_batch_images=16),
        "single": EngineLoop({spec.id: pipeline}, max_batch_images=1),
    }
    # Batch sizes are learnt by then; what learning costs is bounded by the tests of BatchLimits.
    alone = {name: _warm_up(loop, spec, steps) for name, loop in loops.items()}["single"]
    rows = []
    for load, pressure in LOADS.items():
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
        count = images if load == "busy" else max(8, images // 4)
        for number in range(rounds):
            for name, loop in loops.items():
                arrivals = _poisson(spec, count, pressure / alone, steps, seed=number)
                loop.run(arrivals)
                measured[name].append(_figures(loop, [job for _, job in arrivals]))
        rows.append(_row(load, measured))
    return rows


def _warm_up(loop: EngineLoop, spec: ModelSpec, steps: int) -> float:
    """Seconds that one picture takes alone, in the end."""
    loop.run(_poisson(spec, _WARM_UP, 1e6, steps, seed=-1))
    seconds = []
    for seed in range(3):
        started = time.perf_counter()
        loop.run([(0.0, new_job(spec, Priority.STANDARD, seed, num_inference_steps=steps))])
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _poisson(
    spec: ModelSpec, count: int, per_second: float, steps: int, *, seed: int
) -> list[tuple[float, ClaimedJob]]:
    draw, now, arrivals = random.Random(seed), 0.0, []
    for number in range(count):
        arrivals.append(
            (now, new_job(spec, Priority.STANDARD, 1000 + number, num_inference_steps=steps))
        )
        now += draw.expovariate(per_second)
    return arrivals


def _figures(loop: EngineLoop, jobs: Sequence[ClaimedJob]) -> dict[str, float]:
    times = [loop.times[job.id] for job in jobs]
    seconds = max(t.ended for t in times) - min(t.arrived for t in times)
    return {"rate": len(jobs) / seconds, **percentiles([t.ended - t.arrived for t in times])}


def _row(load: str, measured: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    def ratio(figure: str) -> float:
        pairs = zip(measured["batched"], measured["single"], strict=True)
        return statistics.median(ours[figure] / theirs[figure] for ours, theirs in pairs)

    def middle(name: str, figure: str) -> float:
        return statistics.median(one[figure] for one in measured[name])

    return {
        "load": load,
        "batched_images_per_s": middle("batched", "rate"),
        "single_images_per_s": middle("single", "rate"),
        "ratio": ratio("rate"),
        "batched_p50_s": middle("batched", "p50"),
        "single_p50_s": middle("single", "p50"),
        "p50_ratio": ratio("p50"),
        "batched_p95_s": middle("batched", "p95"),
        "single_p95_s": middle("single", "p95"),
        "p95_ratio": ratio("p95"),
    }


def main() -> int:
    """Print the figures."""
    from bench.run import report

    parser = argparse.ArgumentParser(prog="python -m bench.batching", description=__doc__)
    parser.add_argument("--images", type=int, default=32, help="in a busy load")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    started = time.monotonic()
    figures = run(images=arguments.images, rounds=arguments.rounds)
    return report({**figures, "seconds": time.monotonic() - started})


if __name__ == "__main__":
    sys.exit(main())
