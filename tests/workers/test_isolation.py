"""Who runs alone: whoever has lost its worker twice, and in any case the last attempt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_harness import claimed

from workers.isolation import anyone_alone, must_be_alone


@pytest.mark.parametrize(
    ("max_attempts", "alone"),
    [(1, []), (2, [2]), (3, [3]), (5, [3, 4, 5]), (8, [3, 4, 5, 6, 7, 8])],
)
def test_suspects_run_alone_and_first_attempts_never(max_attempts: int, alone: list[int]) -> None:
    jobs = [replace(claimed(), attempt=attempt) for attempt in range(1, max_attempts + 1)]
    assert [job.attempt for job in jobs if must_be_alone(job, max_attempts)] == alone
    assert anyone_alone(jobs, max_attempts) == bool(alone)
    assert not anyone_alone(jobs[:1], max_attempts)
