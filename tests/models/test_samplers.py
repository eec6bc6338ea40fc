"""The samplers against diffusers' schedulers, exact solutions, and themselves in other company."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from models.samplers import SAMPLERS, SamplerPlan
from models.samplers.dpm_solver import dpm_solver_plan
from models.samplers.flow_euler import flow_euler_plan
from models.samplers.stepping import advance

# The reference converts tensors to arrays in a way that numpy 2 frowns upon.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = (1, 2, 3, 5, 14, 15, 20, 50)
SHIFTS = (1.0, 3.0, 6.0, 8.5)
SHAPE = (2, 4, 3, 5)


def reference_scheduler(name: str, steps: int, shift: float, order: int = 2):
    if name == "flow-euler":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    else:
        scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=shift,
            solver_order=order,
        )
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    return scheduler


def network(latents: torch.Tensor, timestep: float) -> torch.Tensor:
    """Any smooth nonlinear function of latents and time will do for a velocity."""
    return torch.tanh(latents) * (0.3 + timestep / 700) - 0.2 * latents.flip(-1).sin()


def sample(plan: SamplerPlan, latents: torch.Tensor) -> torch.Tensor:
    denoised = torch.zeros_like(latents)
    for i, timestep in enumerate(plan.timesteps):
        velocity = network(latents, timestep)
        batch = len(latents)
        latents, denoised = advance([plan] * batch, [i] * batch, latents, velocity, denoised)
    return latents


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return ((value.double() - truth.double()).norm() / truth.double().norm()).item()


def noise(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=dtype)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_schedules_equal_the_reference_to_the_last_digit(name, shift):
    for steps in (*range(1, 60), 100, 250, 999, 1000):
        plan = SAMPLERS[name](steps, shift)
        scheduler = reference_scheduler(name, steps, shift)
        assert plan.num_steps == len(plan.timesteps) == steps
        assert list(plan.timesteps) == [float(t) for t in scheduler.timesteps.tolist()], steps
        assert list(plan.sigmas) == scheduler.sigmas.tolist(), steps


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_equal_the_reference_in_float32(name, steps, shift):
    expected = noise()
    scheduler = reference_scheduler(name, steps, shift)
    for timestep in scheduler.timesteps:
        velocity = network(expected, float(timestep))
        expected = scheduler.step(velocity, timestep, expected, return_dict=False)[0]
    assert relative_error(sample(SAMPLERS[name](steps, shift), noise()), expected) <= 1e-5


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_dpm_steps_equal_the_reference_in_float64(steps, shift, order):
    # Step by step from the same state: the reference rounds every result to float32.
    plan = dpm_solver_plan(steps, shift, order=order)
    scheduler = reference_scheduler("dpm-solver++", steps, shift, order)
    scheduler.sigmas = scheduler.sigmas.double()
    latents = noise(torch.float64)
    denoised = torch.zeros_like(latents)
    for i, timestep in enumerate(scheduler.timesteps):
        velocity = network(latents, float(timestep))
        expected = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        latents, denoised = advance([plan] * 2, [i] * 2, latents, velocity, denoised)
        assert relative_error(latents, expected) <= 1e-7


def test_constant_velocity_is_followed_exactly():
    # Straight paths are what rectified flow aims at; any number of steps solves them.
    data, start = noise(torch.float64), noise(torch.float64).flip(0)
    for name, factory in SAMPLERS.items():
        for steps in (1, 2, 7, 30):
            plan = factory(steps, 3.0)
            latents = (1 - plan.sigmas[0]) * data + plan.sigmas[0] * start
            denoised = torch.zeros_like(latents)
            for i in range(steps):
                latents, denoised = advance([plan] * 2, [i] * 2, latents, start - data, denoised)
            assert relative_error(latents, data) <= 1e-12, (name, steps)


def gaussian_error(plan: SamplerPlan) -> float:
    """Error on data drawn from N(0, s^2), whose exact flow scales x by the marginal deviation."""
    spread = 0.5
    variances = [(1 - sigma) ** 2 * spread**2 + sigma**2 for sigma in plan.sigmas]
    latents = torch.ones(1, 1, dtype=torch.float64)
    denoised = torch.zeros_like(latents)
    for i, (sigma, variance) in enumerate(zip(plan.sigmas, variances[:-1], strict=False)):
        velocity = latents * (sigma - (1 - sigma) * spread**2) / variance
        latents, denoised = advance([plan], [i], latents, velocity, denoised)
    return abs(latents.item() - math.sqrt(variances[-1] / variances[0]))


@pytest.mark.parametrize(
    ("factory", "order"),
    [(dpm_solver_plan, 2), (lambda n, s: dpm_solver_plan(n, s, order=1), 1), (flow_euler_plan, 1)],
    ids=["dpm-solver++", "dpm-solver++ first order", "flow-euler"],
)
def test_halving_the_step_reduces_the_error_as_the_order_promises(factory, order):
    # The solver takes steps in the logarithm of the noise level, which has no end near zero noise:
    # that costs the second order a logarithmic factor, hence the slack.
    errors = [gaussian_error(factory(steps, 1.0)) for steps in (160, 320, 640)]
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(rates) > (1.7 if order == 2 else 0.95)


def test_second_order_beats_first_order_at_equal_cost():
    for steps in (20, 50, 100):
        first = gaussian_error(dpm_solver_plan(steps, 3.0, order=1))
        assert gaussian_error(dpm_solver_plan(steps, 3.0)) < 0.3 * first


def test_members_at_different_steps_of_different_plans_equal_their_solo_runs():
    plans = [
        dpm_solver_plan(20, 3.0),
        dpm_solver_plan(5, 6.0),
        flow_euler_plan(9, 3.0),
        dpm_solver_plan(1, 3.0),
    ]
    starts = noise(shape=(4, 4, 3, 5))
    latents, denoised, steps = starts.clone(), torch.zeros_like(starts), [0, 0, 0, 0]
    tick = 0
    while any(step < plan.num_steps for step, plan in zip(steps, plans, strict=True)):
        # Member i joins at tick i, so no two are ever at the same step.
        batch = [i for i, p in enumerate(plans) if i <= tick and steps[i] < p.num_steps]
        velocity = torch.cat(
            [network(latents[i : i + 1], plans[i].timesteps[steps[i]]) for i in batch]
        )
        moved = advance(
            [plans[i] for i in batch],
            [steps[i] for i in batch],
            latents[batch],
            velocity,
            denoised[batch],
        )
        latents[batch], denoised[batch] = moved
        for i in batch:
            steps[i] += 1
        tick += 1
    for i, plan in enumerate(plans):
        assert torch.equal(latents[i : i + 1], sample(plan, starts[i : i + 1])), plan.name


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(SAMPLERS)),
    steps=st.integers(1, 1000),
    shift=st.floats(0.05, 50.0),
)
def test_any_schedule_falls_to_zero_and_any_step_is_a_bounded_combination(name, steps, shift):
    plan = SAMPLERS[name](steps, shift)
    assert plan.sigmas[-1] == 0.0
    assert 0 < plan.sigmas[0] <= 1.0
    assert all(a > b for a, b in pairwise(plan.sigmas))
    assert all(0 <= t <= 1000 for t in plan.timesteps)
    for step in plan.coefficients:
        assert all(map(math.isfinite, (step.sigma, step.sample, step.denoised, step.previous)))
        # A sample that the network leaves alone must stay where it is.
        assert step.sample + step.denoised + step.previous == pytest.approx(1.0, abs=1e-9)
    last = plan.coefficients[-1]
    assert (last.sample, last.denoised, last.previous) == (0.0, 1.0, 0.0)


def test_advance_leaves_its_arguments_alone():
    plan = dpm_solver_plan(4, 3.0)
    arguments = [noise(), noise().flip(0), noise().flip(1)]
    copies = [argument.clone() for argument in arguments]
    advance([plan] * 2, [1, 2], *arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments, copies, strict=True))


def test_a_low_precision_velocity_is_applied_in_the_precision_of_the_latents():
    plan = dpm_solver_plan(4, 3.0)
    velocity = noise().bfloat16()
    args = ([plan] * 2, [1, 1], noise())
    low = advance(*args, velocity, torch.zeros(SHAPE))
    full = advance(*args, velocity.float(), torch.zeros(SHAPE))
    assert low[0].dtype == torch.float32
    assert torch.equal(low[0], full[0])


def test_mismatched_batches_and_steps_beyond_the_plan_are_refused():
    plan = flow_euler_plan(4, 3.0)
    with pytest.raises(ValueError, match="3 plans and 2 step indices for 2 samples"):
        advance([plan] * 3, [0, 0], noise(), noise(), noise())
    with pytest.raises(IndexError):
        advance([plan] * 2, [0, 4], noise(), noise(), noise())


@pytest.mark.parametrize("name", SAMPLERS)
def test_impossible_schedules_are_refused_by_name(name):
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        SAMPLERS[name](0, 3.0)
    for shift in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="shift is"):
            SAMPLERS[name](20, shift)
    with pytest.raises(ValueError, match="order is 3"):
        dpm_solver_plan(20, 3.0, order=3)


def test_listing_samplers_loads_no_tensor_library():
    code = "import sys, models.samplers as s; assert s.SAMPLERS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
