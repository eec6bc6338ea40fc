"""What every family asks of the generations that it is given for one step."""

from __future__ import annotations

from typing import TypeVar

from models.pipeline import Generation

G = TypeVar("G", bound=Generation)


def checked_batch(members: list[G]) -> list[G]:
    """`members`, which may share a step.

    Raises ValueError for an empty batch, a member given twice, one that is done and members whose
    `batch_key` differs.
    """
    if not members:
        raise ValueError("batch is empty")
    if len({id(member) for member in members}) != len(members):
        raise ValueError("batch holds a generation twice")
    for member in members:
        if member.is_done:
            raise ValueError(f"batch holds a generation that took all its {member.num_steps} steps")
        if member.batch_key != members[0].batch_key:
            raise ValueError(
                f"batch mixes generations of keys {members[0].batch_key} and {member.batch_key}"
            )
    return members
