"""The samplers against diffusers' schedulers, exact solutions, and themselves in other company."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from models.samplers import SAMPLERS, WAN_SAMPLERS, SamplerPlan
from models.samplers.dpm_solver import dpm_solver_plan, wan_dpm_solver_plan
from models.samplers.flow_euler import flow_euler_plan
from models.samplers.sampled_generation import SampledGeneration, take_step
from models.samplers.stepping import advance
from models.samplers.unipc import unipc_plan

# The reference converts tensors to arrays in a way that numpy 2 frowns upon.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = (1, 2, 3, 4, 8, 14, 15, 20, 50)
SHIFTS = (1.0, 3.0, 5.0, 8.0, 16.0)
SHAPE = (2, 4, 3, 5)


def unipc_levels(steps: int) -> np.ndarray:
    """What the official release starts from before the shift; diffusers takes it as an argument."""
    return np.linspace(np.float32(1 - 1 / 1000).item(), 0, steps + 1)[:-1]


def reference_scheduler(name: str, steps: int, shift: float, order: int = 2):
    if name == "unipc":
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )
        scheduler.set_timesteps(steps, sigmas=unipc_levels(steps))
        scheduler.set_begin_index(0)
        return scheduler
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


def no_history(plan: SamplerPlan, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros_like(latents) for _ in range(plan.history_size))


def sample(plan: SamplerPlan, latents: torch.Tensor) -> torch.Tensor:
    history = no_history(plan, latents)
    for i, timestep in enumerate(plan.timesteps):
        velocity = network(latents, timestep)
        batch = len(latents)
        latents, history = advance([plan] * batch, [i] * batch, latents, velocity, history)
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
    history = no_history(plan, latents)
    for i, timestep in enumerate(scheduler.timesteps):
        velocity = network(latents, float(timestep))
        expected = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        latents, history = advance([plan] * 2, [i] * 2, latents, velocity, history)
        assert relative_error(latents, expected) <= 1e-7


def linear_network(latents: torch.Tensor, timestep: float) -> torch.Tensor:
    return latents * (0.3 + timestep / 2000) - 0.2 * latents.flip(-1)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_unipc_runs_equal_the_reference_in_float64(steps, shift):
    plan = unipc_plan(steps, shift)
    scheduler = reference_scheduler("unipc", steps, shift)
    scheduler.sigmas = scheduler.sigmas.double()
    # The reference puts its coefficients into tensors of the default type.
    torch.set_default_dtype(torch.float64)
    try:
        latents = expected = noise(torch.float64)
        history = no_history(plan, latents)
        for i, timestep in enumerate(plan.timesteps):
            velocity = linear_network(expected, timestep)
            expected = scheduler.step(velocity, i, expected, return_dict=False)[0]
            velocity = linear_network(latents, timestep)
            latents, history = advance([plan] * 2, [i] * 2, latents, velocity, history)
    finally:
        torch.set_default_dtype(torch.float32)
    assert relative_error(latents, expected) <= 1e-12


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_wan_dpm_runs_equal_the_reference_on_the_official_levels(steps, shift):
    plan = wan_dpm_solver_plan(steps, shift)
    levels = np.linspace(1, 0, steps + 1)[:-1]
    levels = shift * levels / (1 + (shift - 1) * levels)
    assert plan.sigmas == (*levels.astype(np.float32).tolist(), 0.0)
    assert list(plan.timesteps) == (levels * 1000).astype(np.int64).tolist()
    scheduler = reference_scheduler("dpm-solver++", steps, shift)
    scheduler.sigmas = torch.tensor(plan.sigmas, dtype=torch.float64)
    latents = expected = noise(torch.float64)
    history = no_history(plan, latents)
    for i, timestep in enumerate(plan.timesteps):
        velocity = linear_network(expected, timestep)
        expected = scheduler.step(velocity, i, expected, return_dict=False)[0].double()
        velocity = linear_network(latents, timestep)
        latents, history = advance([plan] * 2, [i] * 2, latents, velocity, history)
    # The reference rounds every result to float32.
    assert relative_error(latents, expected) <= 1e-6


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_wan_euler_runs_equal_the_reference_given_the_same_levels(steps, shift):
    plan = WAN_SAMPLERS["flow-euler"](steps, shift)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1].tolist())
    scheduler.set_begin_index(0)
    assert torch.allclose(torch.tensor(plan.timesteps), scheduler.timesteps, rtol=1e-6)
    latents = expected = noise()
    history = no_history(plan, latents)
    for i, timestep in enumerate(plan.timesteps):
        velocity = linear_network(expected, timestep)
        expected = scheduler.step(velocity, scheduler.timesteps[i], expected, return_dict=False)[0]
        velocity = linear_network(latents, timestep)
        latents, history = advance([plan] * 2, [i] * 2, latents, velocity, history)
    # Twenty to fifty roundings to float32 on either side.
    assert relative_error(latents, expected) <= 5e-6


def test_wan_euler_takes_the_levels_that_distilled_models_are_made_for():
    sigmas = WAN_SAMPLERS["flow-euler"](4, 5.0).sigmas
    assert sigmas == pytest.approx((1, 0.9375, 0.8333333, 0.625, 0), abs=1e-7)


def test_unipc_starts_lower_than_the_scheduler_of_diffusers_left_alone():
    # A difference between the two releases, pinned here.
    theirs = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    theirs.set_timesteps(8)
    plan = unipc_plan(8, 5.0)
    assert plan.sigmas[0] < theirs.sigmas[0].item()
    assert plan.timesteps[-1] == theirs.timesteps[-1].item() - 2


def test_samplers_of_wan_have_the_names_of_all_samplers():
    assert WAN_SAMPLERS.keys() == SAMPLERS.keys()


def test_constant_velocity_is_followed_exactly():
    # Straight paths are what rectified flow aims at; any number of steps solves them.
    data, start = noise(torch.float64), noise(torch.float64).flip(0)
    for name, factory in (*SAMPLERS.items(), *WAN_SAMPLERS.items()):
        for steps in (1, 2, 7, 30):
            plan = factory(steps, 3.0)
            latents = (1 - plan.sigmas[0]) * data + plan.sigmas[0] * start
            history = no_history(plan, latents)
            for i in range(steps):
                latents, history = advance([plan] * 2, [i] * 2, latents, start - data, history)
            assert relative_error(latents, data) <= 1e-12, (name, steps)


def gaussian_error(plan: SamplerPlan) -> float:
    """Error on data drawn from N(0, s^2), whose exact flow scales x by the marginal deviation."""
    spread = 0.5
    variances = [(1 - sigma) ** 2 * spread**2 + sigma**2 for sigma in plan.sigmas]
    latents = torch.ones(1, 1, dtype=torch.float64)
    history = no_history(plan, latents)
    for i, (sigma, variance) in enumerate(zip(plan.sigmas, variances[:-1], strict=False)):
        velocity = latents * (sigma - (1 - sigma) * spread**2) / variance
        latents, history = advance([plan], [i], latents, velocity, history)
    return abs(latents.item() - math.sqrt(variances[-1] / variances[0]))


@pytest.mark.parametrize(
    ("factory", "order"),
    [
        (dpm_solver_plan, 2),
        (unipc_plan, 2),
        (lambda n, s: dpm_solver_plan(n, s, order=1), 1),
        (flow_euler_plan, 1),
    ],
    ids=["dpm-solver++", "unipc", "dpm-solver++ first order", "flow-euler"],
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


def test_correcting_pays_at_equal_cost():
    for steps in (20, 50, 100):
        uncorrected = gaussian_error(dpm_solver_plan(steps, 3.0))
        assert gaussian_error(unipc_plan(steps, 3.0)) < uncorrected


def test_members_at_different_steps_of_different_plans_equal_their_solo_runs():
    plans = [
        dpm_solver_plan(20, 3.0),
        dpm_solver_plan(5, 6.0),
        flow_euler_plan(9, 3.0),
        unipc_plan(7, 5.0),
        dpm_solver_plan(1, 3.0),
        unipc_plan(12, 3.0),
    ]
    # The third has two samples.
    starts = noise(shape=(7, 4, 3, 5)).split([1, 1, 2, 1, 1, 1])
    members = [SampledGeneration(*pair) for pair in zip(plans, starts, strict=True)]
    tick = 0
    while not all(member.is_done for member in members):
        # Member i joins at tick i, so no two are ever at the same step.
        batch = [member for member in members[: tick + 1] if not member.is_done]
        latents = torch.cat([member.latents for member in batch])
        velocity = torch.cat(
            [network(member.latents, member.plan.timesteps[member.step_index]) for member in batch]
        )
        take_step(batch, latents, velocity)
        tick += 1
    for member, start in zip(members, starts, strict=True):
        assert torch.equal(member.latents, sample(member.plan, start)), member.plan.name
        assert len(member.history) == member.plan.history_size


@pytest.mark.parametrize("at_step", [0, 1, 2, 5, 8])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_goes_on_from_its_state_bit_for_bit(name, at_step):
    def go_on(member: SampledGeneration, until: int) -> None:
        while member.step_index < until:
            timestep = member.plan.timesteps[member.step_index]
            take_step([member], member.latents, network(member.latents, timestep))

    plan = SAMPLERS[name](8, 5.0)
    unbroken, first, resumed = (SampledGeneration(plan, noise()) for _ in range(3))
    go_on(unbroken, 8)
    go_on(first, at_step)
    resumed.load_state_dict(first.state_dict())
    go_on(resumed, 8)
    assert resumed.step_index == 8
    assert torch.equal(resumed.latents, unbroken.latents)


def test_a_state_of_another_sampler_is_refused():
    state = SampledGeneration(dpm_solver_plan(4, 3.0), noise()).state_dict()
    with pytest.raises(ValueError, match=r"state holds .* expected .*corrected_latents"):
        SampledGeneration(unipc_plan(4, 3.0), noise()).load_state_dict(state)


def test_a_state_whose_step_is_no_whole_number_is_refused():
    generation = SampledGeneration(dpm_solver_plan(4, 3.0), noise())
    state = {**generation.state_dict(), "step_index": torch.tensor(1.5)}
    with pytest.raises(ValueError, match=r"step_index is torch.float32 \[\], expected one"):
        generation.load_state_dict(state)
    assert generation.step_index == 0


@settings(deadline=None)
@given(
    factory=st.sampled_from([*SAMPLERS.values(), *WAN_SAMPLERS.values()]),
    steps=st.integers(1, 1000),
    shift=st.floats(0.05, 50.0),
)
def test_any_schedule_falls_to_zero_and_any_step_is_a_bounded_combination(factory, steps, shift):
    plan = factory(steps, shift)
    assert plan.sigmas[-1] == 0.0
    assert 0 < plan.sigmas[0] <= 1.0
    assert all(a > b for a, b in pairwise(plan.sigmas))
    assert all(0 <= t <= 1000 for t in plan.timesteps)
    for step in plan.coefficients:
        assert all(map(math.isfinite, (step.sigma, step.sample, step.denoised, step.previous)))
        # A sample that the network leaves alone must stay where it is.
        assert step.sample + step.denoised + step.previous == pytest.approx(1.0, abs=1e-9)
        if (c := step.corrector) is not None:
            weights = (c.corrected, c.denoised, c.previous, c.earlier)
            assert all(map(math.isfinite, weights))
            assert sum(weights) == pytest.approx(1.0, abs=1e-9)
    last = plan.coefficients[-1]
    assert (last.sample, last.denoised, last.previous) == (0.0, 1.0, 0.0)


def test_advance_leaves_its_arguments_alone():
    plan = unipc_plan(4, 3.0)
    arguments = [noise() * scale for scale in (1, 2, 3, 4, 5)]
    copies = [argument.clone() for argument in arguments]
    advance([plan] * 2, [1, 2], *arguments[:2], tuple(arguments[2:]))
    assert all(torch.equal(a, b) for a, b in zip(arguments, copies, strict=True))


def test_a_low_precision_velocity_is_applied_in_the_precision_of_the_latents():
    plan = dpm_solver_plan(4, 3.0)
    velocity = noise().bfloat16()
    args = ([plan] * 2, [1, 1], noise())
    low = advance(*args, velocity, (torch.zeros(SHAPE),))
    full = advance(*args, velocity.float(), (torch.zeros(SHAPE),))
    assert low[0].dtype == torch.float32
    assert torch.equal(low[0], full[0])


def test_mismatched_batches_and_steps_beyond_the_plan_are_refused():
    plan = flow_euler_plan(4, 3.0)
    with pytest.raises(ValueError, match="3 plans and 2 step indices for 2 samples"):
        advance([plan] * 3, [0, 0], noise(), noise(), (noise(),))
    with pytest.raises(IndexError):
        advance([plan] * 2, [0, 4], noise(), noise(), (noise(),))
    plans = [plan, unipc_plan(4, 3.0)]
    with pytest.raises(ValueError, match="history holds 1 tensors, the plans need 3"):
        advance(plans, [0, 0], noise(), noise(), (noise(),))


@pytest.mark.parametrize("name", SAMPLERS)
def test_impossible_schedules_are_refused_by_name(name):
    for factory in (SAMPLERS[name], WAN_SAMPLERS[name]):
        with pytest.raises(ValueError, match="num_inference_steps is 0"):
            factory(0, 3.0)
        for shift in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="shift is"):
                factory(20, shift)
    with pytest.raises(ValueError, match="order is 3"):
        dpm_solver_plan(20, 3.0, order=3)


def test_listing_samplers_loads_no_tensor_library():
    code = "import sys, models.samplers as s; assert s.SAMPLERS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
