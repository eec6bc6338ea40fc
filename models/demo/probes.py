"""Training a demo's text encoder: linear probes must read every attribute of a scene from captions.

A probe pools a caption's hidden states by attention, as cross-attention does, so what the probes
can read, a transformer can. The probes are thrown away once the encoder is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.demo.training import Clock, warm_cosine

Attributes = Mapping[str, tuple[str | None, ...]]
"""Name of each attribute and its values; None where captions may leave it open."""

_LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class ReadCaptions:
    """A batch of encoded captions: states [B, T, C], mask [B, T], the truth, and what they are."""

    states: Tensor
    mask: Tensor
    truth: Sequence[Mapping[str, str | None]]
    kind: str


class Probes(nn.Module):
    """For each attribute, one attention query that pools the tokens, and a linear classifier."""

    def __init__(self, attributes: Attributes, hidden_size: int) -> None:
        super().__init__()
        self.attributes = attributes
        self.queries = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(hidden_size) * 0.05) for name in attributes}
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(hidden_size, len(values)) for name, values in attributes.items()}
        )

    def forward(self, states: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Logits [B, values] of each attribute."""
        logits = {}
        for name, query in self.queries.items():
            scores = (states @ query).masked_fill(~mask, float("-inf"))
            pooled = (scores.softmax(1).unsqueeze(-1) * states).sum(1)
            logits[name] = self.heads[name](pooled)
        return logits

    def labels(self, truth: Sequence[Mapping[str, str | None]]) -> dict[str, Tensor]:
        """Index [B] of the true value of each attribute."""
        return {
            name: torch.tensor([values.index(row[name]) for row in truth])
            for name, values in self.attributes.items()
        }

    @torch.no_grad()
    def accuracy(self, captions: ReadCaptions) -> float:
        """Share of the captions whose every attribute is read right."""
        logits = self(captions.states, captions.mask)
        wanted = self.labels(captions.truth)
        right = [logits[name].argmax(1) == wanted[name] for name in self.attributes]
        return torch.stack(right).all(0).float().mean().item()


def train_with_probes(
    model: nn.Module, probes: Probes, read: Callable[[int], ReadCaptions], clock: Clock
) -> None:
    """Train `model` and `probes` until the clock is over; `read` encodes the captions of a step."""
    parameters = [*model.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(parameters, _LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step in clock.ticks():
        captions = read(step)
        logits, wanted = probes(captions.states, captions.mask), probes.labels(captions.truth)
        losses = [F.cross_entropy(logits[name], wanted[name]) for name in probes.attributes]
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * warm_cosine(clock.progress, step, warmup=50)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 in (0, 3):
            right = " ".join(
                f"{name} {(logits[name].argmax(1) == wanted[name]).float().mean():.2f}"
                for name in probes.attributes
            )
            print(f"step {step} {clock.spent:.0f}s {captions.kind} {right}", flush=True)
