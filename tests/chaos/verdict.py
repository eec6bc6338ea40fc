"""What a run has proved or disproved: findings under three heads, and the line that sums them up.

A finding is one sentence with the job or key it is about. The heads are those of the promise: an
accepted job is not lost, has one end and one result, and that is right.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Head = Literal["lost", "duplicated", "wrong"]
HEADS: tuple[Head, ...] = ("lost", "duplicated", "wrong")


@dataclass
class Findings:
    """All that was found wrong; `subject` of each is a job's number, a key, a file or a process."""

    found: list[tuple[Head, str, str]] = field(default_factory=list)

    def add(self, head: Head, subject: str, what: str) -> None:
        """Note one finding."""
        self.found.append((head, subject, what))

    def count(self, head: Head) -> int:
        """Subjects with a finding under this head."""
        return len({subject for found, subject, _ in self.found if found == head})

    def counts(self) -> dict[Head, int]:
        """All heads."""
        return {head: self.count(head) for head in HEADS}

    def lines(self, most: int = 200) -> list[str]:
        """One line a finding."""
        lines = [f"{head}: {subject}: {what}" for head, subject, what in self.found[:most]]
        if len(self.found) > most:
            lines.append(f"... and {len(self.found) - most} more")
        return lines


@dataclass(frozen=True)
class Report:
    """A run in figures."""

    seed: int
    plan_digest: str
    jobs: int
    kills: int
    outages: int
    seconds: float
    findings: Findings
    blows: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    retries: int = 0
    refused_deadlines: int = 0
    resumed_steps: int = 0
    interrupted: int = 0
    longest_stop: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings.found

    def summary(self) -> str:
        """The last line of a run."""
        counts = self.findings.counts()
        return (
            f"chaos: {self.jobs} jobs, {self.kills} kills, {self.outages} outages, "
            f"seed {self.seed}: " + ", ".join(f"{counts[head]} {head}" for head in HEADS)
        )

    def details(self) -> list[str]:
        """What was done and what came of it."""
        return [
            f"plan {self.plan_digest}, {self.seconds:.0f} s",
            f"blows: {_listed(self.blows)}",
            f"ends: {_listed(self.endings)}",
            f"attempts: {_listed(self.attempts)}",
            f"requests tried again: {self.retries}, without deadline: {self.refused_deadlines}",
            f"long jobs that lost a worker: {self.interrupted}, "
            f"steps that checkpoints saved: {self.resumed_steps}",
            f"longest stop: {self.longest_stop:.1f} s",
        ]


def _listed(counter: Counter[str] | Counter[int]) -> str:
    return ", ".join(f"{key} {count}" for key, count in sorted(counter.items())) or "none"
