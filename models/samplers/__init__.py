"""Samplers: from a number of steps to the numbers that every denoise step needs.

`SAMPLERS[name](num_inference_steps, shift)` gives a `SamplerPlan`, a value without any state;
`models.samplers.stepping.advance` applies plans to tensors. Wan models take the same names from
`WAN_SAMPLERS`, on the schedules of their official release. This package alone loads no tensor
library, so that a process that only lists samplers stays light.
"""

from __future__ import annotations

from collections.abc import Callable

from models.samplers.dpm_solver import dpm_solver_plan, wan_dpm_solver_plan
from models.samplers.flow_euler import flow_euler_plan, wan_flow_euler_plan
from models.samplers.plan import HISTORY, Corrector, SamplerPlan, StepCoefficients
from models.samplers.unipc import unipc_plan

__all__ = [
    "HISTORY",
    "SAMPLERS",
    "WAN_SAMPLERS",
    "Corrector",
    "SamplerPlan",
    "StepCoefficients",
]

SAMPLERS: dict[str, Callable[[int, float], SamplerPlan]] = {
    "dpm-solver++": dpm_solver_plan,
    "flow-euler": flow_euler_plan,
    "unipc": unipc_plan,
}

WAN_SAMPLERS: dict[str, Callable[[int, float], SamplerPlan]] = {
    "dpm-solver++": wan_dpm_solver_plan,
    "flow-euler": wan_flow_euler_plan,
    "unipc": unipc_plan,
}
