"""The training loop of the demos' transformers: flow matching, averages, schedule, states.

Flow matching as in Sana (arXiv 2410.10629) and Wan (arXiv 2503.20314): sigma from a logit-normal,
x = (1 - sigma) data + sigma noise, and the network predicts the velocity noise - data at timestep
1000 sigma. Whoever calls says how the loss of a step is made.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.demo.training import (
    SAVE_EVERY_SECONDS,
    Average,
    Clock,
    base_parser,
    generator,
    join_processes,
    load_state,
    mixed_precision,
    save_state,
    share_gradients,
    warm_cosine,
)

STATE = "transformer.state"


def flow_parser(description: str, *, learning_rate: float) -> argparse.ArgumentParser:
    """The options of a transformer's training."""
    parser = base_parser(description)
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--hold", type=float, default=0.4, help="share before the rate falls")
    parser.add_argument("--weights", type=Path, help="state file to take the first weights from")
    return parser


def noisy(data: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy data, the velocity there and the sigmas [B], for a batch of unit-variance latents."""
    sigmas = torch.sigmoid(0.3 + 1.2 * torch.randn(len(data), generator=rng))
    noise = torch.randn(data.shape, generator=rng)
    sigma = sigmas.view(-1, *[1] * (data.ndim - 1))
    return (1 - sigma) * data + sigma * noise, noise - data, sigmas


class FlowTraining:
    """One training of `model`: its optimizer, average and clock, and the file they are kept in.

    `state` is what the last save kept, if the training is resumed. Started by torchrun, several
    processes train one model, each on batches of its own; the first one saves and reports.
    """

    def __init__(self, model: nn.Module, arguments: argparse.Namespace) -> None:
        self.model = model
        self.rank, self.processes = join_processes()
        self.seed: int = arguments.seed
        self.learning_rate: float = arguments.learning_rate
        self.hold: float = arguments.hold
        self.path: Path = arguments.out / STATE
        arguments.out.mkdir(parents=True, exist_ok=True)
        if arguments.weights:
            first = load_state(arguments.weights)
            model.load_state_dict({**first["model"], **first["average"]})
        self.average = Average(model, 0.998)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), self.learning_rate, betas=(0.9, 0.98), fused=True
        )
        self.clock = Clock(arguments.seconds, arguments.steps)
        self.state: dict[str, Any] | None = load_state(self.path) if arguments.resume else None
        if self.state is not None:
            model.load_state_dict(self.state["model"])
            self.average.values = self.state["average"]
            self.optimizer.load_state_dict(self.state["optimizer"])
            self.clock.step, self.clock.spent = self.state["step"], self.state["spent"]

    def save(self, **extra: Any) -> None:
        """Write the state file, with `extra` beside what the training itself needs."""
        save_state(
            self.path,
            model=self.model.state_dict(),
            average=self.average.values,
            optimizer=self.optimizer.state_dict(),
            step=self.clock.step,
            spent=self.clock.spent,
            **extra,
        )

    def run(self, loss_of: Callable[[int, torch.Generator], Tensor], **extra: Any) -> None:
        """Train until the clock is over; `loss_of` gets the number of a step and its randomness."""
        clock, is_first = self.clock, self.rank == 0
        saved, running = clock.spent, 0.0
        for step in clock.ticks():
            rate = self.learning_rate * warm_cosine(
                clock.progress, step, warmup=100, hold=self.hold
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            # At this size the plain attention kernel is the faster one backwards.
            with mixed_precision(), sdpa_kernel(SDPBackend.MATH):
                own_step = step * self.processes + self.rank
                loss = loss_of(step, generator(self.seed, own_step))
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
            if self.processes > 1:
                share_gradients(self.model, clock)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.average.update(self.model, step)
            running = 0.98 * running + 0.02 * loss.item() if running else loss.item()
            if is_first and step % 100 == 0:
                print(
                    f"step {step} {clock.spent:.0f}s loss {running:.4f} lr {rate:.2e}", flush=True
                )
            if is_first and clock.spent - saved > SAVE_EVERY_SECONDS:
                saved = clock.spent
                self.save(**extra)
        if not is_first:
            return
        self.save(**extra)
        print(f"done after {clock.step} steps, loss {running:.4f}", flush=True)
