"""Free memory is the machine's or what the container leaves, whichever is less."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.weights.host_memory import available_host_bytes

GIB = 1 << 30


def machine(root: Path, available: int = 16 * GIB, groups: str = "0::/\n") -> Path:
    files = {
        "proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {available // 1024} kB\nBuffers: 0 kB\n",
        "proc/self/cgroup": groups,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(
    folder: Path,
    limit: int | str,
    usage: int,
    inactive: int = 0,
    active: int = 0,
    version: int = 2,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        2: ("memory.max", "memory.current", ""),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    }[version]
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    # In version 1 the group's own pages are told from those of all groups inside it.
    files = f"{names[2]}inactive_file {inactive}\n{names[2]}active_file {active}\n"
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file_x 7\n{files}")


def test_without_limits_it_is_what_the_machine_has_available(tmp_path: Path) -> None:
    group(machine(tmp_path) / "sys/fs/cgroup", "max", 3 * GIB)
    assert available_host_bytes(tmp_path) == 16 * GIB


def test_a_limit_of_the_container_counts_and_droppable_file_pages_are_free(tmp_path: Path) -> None:
    group(machine(tmp_path) / "sys/fs/cgroup", 8 * GIB, 6 * GIB, inactive=3 * GIB, active=2 * GIB)
    assert available_host_bytes(tmp_path) == 7 * GIB


def test_a_limit_beyond_what_the_machine_has_left_changes_nothing(tmp_path: Path) -> None:
    group(machine(tmp_path, available=2 * GIB) / "sys/fs/cgroup", 8 * GIB, GIB)
    assert available_host_bytes(tmp_path) == 2 * GIB


def test_the_tightest_group_around_the_process_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, groups="0::/system.slice/denoised.service\n") / "sys/fs/cgroup"
    group(root / "system.slice", 6 * GIB, 2 * GIB)
    group(root / "system.slice/denoised.service", 5 * GIB, GIB // 2)
    assert available_host_bytes(tmp_path) == 4 * GIB


@pytest.mark.parametrize("path", ["/", "/docker/0123", "/../0123"])
def test_version_1_counts_whether_or_not_the_container_sees_its_own_path(
    tmp_path: Path, path: str
) -> None:
    machine(tmp_path, groups=f"9:name=systemd:/\n5:cpu,memory:{path}\n3:cpuset:/\n0::/\n")
    mounted = tmp_path / "sys/fs/cgroup/memory"
    group(mounted, 4 * GIB, 3 * GIB, inactive=GIB, active=GIB, version=1)
    assert available_host_bytes(tmp_path) == 3 * GIB


def test_version_1_without_a_limit_is_a_very_large_number(tmp_path: Path) -> None:
    machine(tmp_path, groups="4:memory:/\n")
    group(tmp_path / "sys/fs/cgroup/memory", 9223372036854771712, GIB, version=1)
    assert available_host_bytes(tmp_path) == 16 * GIB


def test_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    group(machine(tmp_path) / "sys/fs/cgroup", GIB, 2 * GIB)
    assert available_host_bytes(tmp_path) == 0


def test_a_system_that_tells_nothing_has_its_physical_memory(tmp_path: Path) -> None:
    assert available_host_bytes(tmp_path) > 0
    assert available_host_bytes() > 0
