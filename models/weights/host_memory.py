"""How much memory this process can still take from the host, within the limits of its container.

What the kernel says is available to the whole machine, or less where a control group of the process
has a limit (version 2 or 1, the group itself or one around it). Pages of files that were read and
may be dropped count as free in both: a mapped checkpoint would otherwise take its own room away.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class _Version:
    """Where a version of control groups is mounted, and what its files are called."""

    mount: str
    limit: str
    usage: str
    droppable: tuple[str, str]


# Pages that were read again are active; the kernel drops those too before it kills anyone.
_V2 = _Version("sys/fs/cgroup", "memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = _Version(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


def available_host_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping or being killed, 0 or more.

    `root` is where `proc` and `sys` are mounted. Without any of their files it is the memory that
    the machine has.
    """
    machine = _available(root / "proc/meminfo")
    if machine is None:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([machine, *_rooms(root)]))


def _available(meminfo: Path) -> int | None:
    for line in _lines(meminfo):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _rooms(root: Path) -> Iterator[int]:
    """What each group around this process leaves, as far as they have limits."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            version = _V2
        elif "memory" in controllers.split(","):
            version = _V1
        else:
            continue
        # Without a namespace of its own, a container sees its path from the host's root, but often
        # only its own group mounted: paths that lead nowhere have no files and say nothing.
        inside = PurePosixPath(path.lstrip("/"))
        groups = [inside, *inside.parents] if ".." not in inside.parts else [PurePosixPath()]
        for group in groups:
            room = _room(root / version.mount / group, version)
            if room is not None:
                yield room


def _room(group: Path, version: _Version) -> int | None:
    limit, usage = _number(group / version.limit), _number(group / version.usage)
    if limit is None or usage is None:
        return None
    droppable = 0
    for line in _lines(group / "memory.stat"):
        name, _, value = line.partition(" ")
        if name in version.droppable:
            droppable += int(value)
    return limit - max(0, usage - droppable)


def _number(path: Path) -> int | None:
    """None where the file is missing or says "max"."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
