"""Whether the tensors of a file are those of an architecture, in one line if not."""

from __future__ import annotations

from collections.abc import Mapping

from models.errors import CheckpointError

_NAMED_IN_ERRORS = 3


def check_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise CheckpointError, naming the first tensors at fault, unless both are the same."""
    if missing := [name for name in expected if name not in found]:
        raise CheckpointError(f"lacks {_listed(missing)} of the architecture")
    if unexpected := [name for name in found if name not in expected]:
        raise CheckpointError(f"holds {_listed(unexpected)} unknown to the architecture")
    if wrong := [name for name, shape in expected.items() if found[name] != shape]:
        first = wrong[0]
        raise CheckpointError(
            f"{_listed(wrong)} of another shape: {first!r} is {list(found[first])}, "
            f"expected {list(expected[first])}"
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED_IN_ERRORS])
    more = f" and {len(names) - _NAMED_IN_ERRORS} more" if len(names) > _NAMED_IN_ERRORS else ""
    noun = "tensor" if len(names) == 1 else "tensors"
    return f"{len(names)} {noun} ({shown}{more})"
