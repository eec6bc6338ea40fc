"""What a benchmark is to reach, beside its figures: properties that hold, figures that should.

A benchmark lists its goals under "goals" in its figures. There are two kinds, and one rule. A
property (nothing lost, the same bytes) is true on any machine: where one does not hold, the run has
failed. A time, a rate or a ratio depends on what else the machine does: it is said to be met or
not, stays in the results, and fails nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Goal = dict[str, Any]
"""One row: goal, value, bound, met, must_hold."""


def holds(name: str, is_so: bool) -> Goal:
    """A property."""
    return _goal(name, is_so, "must hold", is_so, must_hold=True)


def none(name: str, count: int) -> Goal:
    """A property: so many are counted of what must not be."""
    return _goal(name, count, "must be 0", count == 0, must_hold=True)


def at_most(name: str, value: float, bound: float) -> Goal:
    """A figure of this machine; less is better."""
    return _goal(name, value, f"at most {bound:.4g}", value <= bound, must_hold=False)


def at_least(name: str, value: float, bound: float) -> Goal:
    """A figure of this machine; more is better."""
    return _goal(name, value, f"at least {bound:.4g}", value >= bound, must_hold=False)


def lines(figures: Mapping[str, Any]) -> list[str]:
    """One line for each goal in the figures of a benchmark."""
    return [
        f"  goal {goal['goal']}: {_text(goal['value'])} ({goal['bound']}): "
        + ("met" if goal["met"] else "NOT met")
        for goal in figures.get("goals", [])
    ]


def broken(figures: Mapping[str, Any]) -> list[str]:
    """Names of the properties that do not hold."""
    goals = figures.get("goals", [])
    return [goal["goal"] for goal in goals if goal["must_hold"] and not goal["met"]]


def _goal(name: str, value: float, bound: str, met: bool, *, must_hold: bool) -> Goal:
    return {"goal": name, "value": value, "bound": bound, "met": met, "must_hold": must_hold}


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
