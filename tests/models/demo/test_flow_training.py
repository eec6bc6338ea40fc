"""The loop that trains the demos' transformers: its noise, and that a break leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.demo.flow_training import FlowTraining, flow_parser, noisy


def start(folder, *options):
    parser = flow_parser("A training.", learning_rate=1e-2)
    arguments = parser.parse_args(["--steps", "6", "--out", str(folder), *options])
    torch.manual_seed(0)
    return FlowTraining(nn.Linear(4, 4), arguments)


def loss_for(training):
    def loss_of(step, rng):
        data = torch.randn(8, 4, generator=rng)
        latents, velocity, _ = noisy(data, rng)
        return (training.model(latents).float() - velocity).square().mean()

    return loss_of


def test_going_along_the_velocity_leads_back_to_the_data():
    rng = torch.Generator().manual_seed(1)
    data = torch.randn(5, 16, 3, 2, 2, generator=rng)
    latents, velocity, sigmas = noisy(data, rng)
    assert sigmas.shape == (5,)
    assert ((sigmas > 0) & (sigmas < 1)).all()
    # A few roundings of float32.
    assert torch.allclose(latents - sigmas.view(5, 1, 1, 1, 1) * velocity, data, atol=1e-5)


def test_a_resumed_training_ends_like_an_unbroken_one(tmp_path):
    unbroken = start(tmp_path / "unbroken")
    unbroken.run(loss_for(unbroken))

    broken = start(tmp_path / "broken")
    loss_of = loss_for(broken)

    def breaking(step, rng):
        if step == 3:
            broken.save(note=7)
            raise KeyboardInterrupt
        return loss_of(step, rng)

    with pytest.raises(KeyboardInterrupt):
        broken.run(breaking)
    resumed = start(tmp_path / "broken", "--resume")
    assert resumed.state["note"] == 7
    assert resumed.clock.step == 3
    resumed.run(loss_for(resumed))
    assert torch.equal(resumed.model.weight, unbroken.model.weight)
    assert torch.equal(resumed.average.values["weight"], unbroken.average.values["weight"])


def test_a_training_may_start_from_the_average_of_another(tmp_path):
    first = start(tmp_path / "first")
    first.run(loss_for(first))
    second = start(tmp_path / "second", "--weights", str(tmp_path / "first" / "transformer.state"))
    assert torch.equal(second.model.weight, first.average.values["weight"])
    assert second.clock.step == 0
