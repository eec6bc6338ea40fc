"""Checkpoints in several safetensors files, told from the files' own names: `x-00001-of-00007`.

Paths come in, one for each checkpoint or all files of one checkpoint go out. A folder as it is
published also has an index; files that were shared or copied one by one often have none, and their
names say as much. Opens nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from models.errors import CheckpointError

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


def first_shards(paths: Iterable[Path]) -> list[Path]:
    """`paths` in name order, but of the shards of a checkpoint only the first that is there."""
    firsts: dict[object, Path] = {}
    for path in sorted(paths):
        match = _SHARD.fullmatch(path.name)
        checkpoint = (path.parent, match["stem"], match["count"]) if match else path
        firsts.setdefault(checkpoint, path)
    return list(firsts.values())


def shard_files(path: Path) -> tuple[Path, ...]:
    """All files of the checkpoint that the file at `path` is a shard of, or that it is.

    Raises CheckpointError naming the first shard that is missing.
    """
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return (path,)
    files = []
    for number in range(1, int(match["count"]) + 1):
        file = path.with_name(f"{match['stem']}-{number:05}-of-{match['count']}.safetensors")
        if not file.is_file():
            raise CheckpointError(f"{file}: shard is missing, {path.name} is there")
        files.append(file)
    # A number beyond the count, or a count of zero.
    if path not in files:
        raise CheckpointError(f"{path}: is no shard of {int(match['count'])}")
    return tuple(files)
