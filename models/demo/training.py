"""What the training scripts of the demo models share: clock, schedule, averages and state files.

A training is a number of steps or of seconds; either way it has a progress from 0 to 1 that the
schedules follow. Its state is one file, rewritten every minute or so, from which `--resume` goes
on; the data of step n depend on the seed and on n alone.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.native_dtypes import multiplies_bfloat16

SAVE_EVERY_SECONDS = 90.0


def base_parser(description: str, *, resumable: bool = True) -> argparse.ArgumentParser:
    """The options every training script takes; a short training need not be resumable."""
    parser = argparse.ArgumentParser(description=description)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--seconds", type=float, help="train for so long (of training time)")
    length.add_argument("--steps", type=int, help="train for so many steps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, required=True, help="folder of states and results")
    parser.add_argument("--seed", type=int, default=0)
    if resumable:
        parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    return parser


class Clock:
    """Steps and seconds spent, kept over a resume, and the progress they amount to."""

    def __init__(self, seconds: float | None, steps: int | None) -> None:
        self.seconds, self.steps = seconds, steps
        self.step, self.spent = 0, 0.0
        self._mark = time.monotonic()

    @property
    def progress(self) -> float:
        """From 0 at the start to 1 at the end."""
        if self.steps is not None:
            return min(1.0, self.step / self.steps)
        assert self.seconds is not None
        return min(1.0, self.spent / self.seconds)

    def ticks(self) -> Iterator[int]:
        """Yield step numbers until the training is over."""
        self._mark = time.monotonic()
        while self.progress < 1.0:
            yield self.step
            now = time.monotonic()
            self.spent += now - self._mark
            self._mark = now
            self.step += 1


def join_processes() -> tuple[int, int]:
    """This process's rank and how many train together; (0, 1) unless torchrun started it."""
    if not dist.is_torchelastic_launched():
        return 0, 1
    dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def share_gradients(module: nn.Module, clock: Clock) -> None:
    """Average the gradients of all processes, and their clocks, so that all stop together."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients] + [torch.tensor([clock.spent])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()
    clock.spent = flat[-1].item()


def mixed_precision() -> torch.autocast:
    """A context in which products are in bfloat16, if this CPU multiplies that natively."""
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16(torch.device("cpu")))


def generator(seed: int, step: int) -> torch.Generator:
    """Randomness of one step of one training."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def warm_cosine(progress: float, step: int, *, warmup: int, hold: float = 0.0) -> float:
    """Learning-rate factor: linear warm-up, constant until `hold`, then half a cosine to 1 %."""
    fall = max(0.0, (progress - hold) / (1.0 - hold))
    return min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * (1.0 + math.cos(math.pi * fall)) / 2)


class Average:
    """Exponential moving average of a module's parameters, warmed up over the first steps."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, parameter in module.named_parameters():
            self.values[name].lerp_(parameter.detach(), 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            parameter.copy_(self.values[name])


def save_state(path: Path, **state: Any) -> None:
    """Write a state file so that a kill in the middle leaves the previous one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state file; raises FileNotFoundError when there is none."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def psnr(prediction: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1]."""
    error = (prediction.float().clamp(-1, 1) - target).square().mean().item()
    return 10.0 * math.log10(4.0 / max(error, 1e-12))
