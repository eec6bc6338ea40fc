"""How the chaos suite starts `denoised worker`, `api` and `keeper`: the real command, and around it
what no user could switch on.

The commands run as they are. Beneath them lie a clock that SIGUSR1 moves, a disk that is full or
slow while a file says so, and, to prove that the suite notices, scripts with a safeguard cut out.
Only what is needed before the hooks are in place is imported here.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SABOTAGES = ("fence", "reaper", "checkpoint-fence")
"""Safeguards that `launch` can switch off."""


def launch(
    arguments: Sequence[str],
    env: Mapping[str, str],
    control: Path,
    log: Path,
    sabotage: str | None,
) -> None:
    """Be `denoised <arguments>` with exactly `env` as environment.

    `control` is the folder of files that steer the hooks; the process puts one named after its id
    there once they are in place.
    """
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(env)
    _install_clock(control)
    _install_disk(control)
    _tell_of_handler(stops_file(control, os.getpid()))

    from denoised.lifeline import die_with

    die_with(os.getppid(), signal.SIGKILL)
    if sabotage is not None:
        _switch_off(sabotage)
    (control / str(os.getpid())).touch()
    sys.argv = ["denoised", *arguments]
    from denoised.cli import main

    main()


def clock_file(control: Path) -> Path:
    """Holds `{"wall": s, "monotonic": s}`, by how much a process that gets SIGUSR1 moves on."""
    return control / "clock.json"


def full_disk_file(control: Path) -> Path:
    """While it exists no file reaches the disk."""
    return control / "disk-full"


def slow_disk_file(control: Path) -> Path:
    """While it exists every file takes as many seconds to reach the disk as it says."""
    return control / "disk-slow"


def stops_file(control: Path, pid: int) -> Path:
    """Is there once the process handles SIGTERM."""
    return control / f"{pid}.stops"


def syncs_file(control: Path, pid: int) -> Path:
    """Is there while a file of the process is held up by the slow disk."""
    return control / f"{pid}.syncs"


def _install_clock(control: Path) -> None:
    true_wall, true_monotonic = time.time, time.monotonic
    moved = {"wall": 0.0, "monotonic": 0.0}

    def move(_signum: int, _frame: object) -> None:
        for clock, seconds in json.loads(clock_file(control).read_text()).items():
            moved[clock] += seconds

    time.time = lambda: true_wall() + moved["wall"]
    time.monotonic = lambda: true_monotonic() + moved["monotonic"]
    signal.signal(signal.SIGUSR1, move)


def _install_disk(control: Path) -> None:
    full, slow = full_disk_file(control), slow_disk_file(control)
    syncs = syncs_file(control, os.getpid())
    true_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            if full.exists():
                raise OSError(28, "No space left on device")
            if slow.exists():
                syncs.touch()
                time.sleep(float(slow.read_text() or 0))
                syncs.unlink(missing_ok=True)
        true_fsync(descriptor)

    os.fsync = fsync


def _tell_of_handler(file: Path) -> None:
    true_signal = signal.signal

    def install(signum: int, handler: Any) -> Any:
        former = true_signal(signum, handler)
        if signum == signal.SIGTERM:
            file.touch()
        return former

    signal.signal = install


def _switch_off(safeguard: str) -> None:
    if safeguard == "fence":
        _cut("PROGRESS", "if held[1] ~= exec then return 0 end")
        _cut("FINISH", "if job.exec ~= exec then", "if false then")
        _cut("REQUEUE", "if job.exec ~= exec then", "if false then")
    elif safeguard == "reaper":
        _cut("REAP", "local reaped, lost = {}, {}", "do return {} end local reaped, lost = {}, {}")
    elif safeguard == "checkpoint-fence":
        _cut("CHECKPOINT", "if held[1] ~= exec then return 0 end")
    else:
        raise ValueError(f"{safeguard!r} is none of {', '.join(SABOTAGES)}")


def _cut(name: str, text: str, instead: str = "") -> None:
    """Replace a part of a script; fails if the script no longer has it."""
    from dataclasses import replace
    from hashlib import sha1

    from jobs import scripts

    script = getattr(scripts, name)
    if text not in script.source:
        raise RuntimeError(f"{name} does not hold {text!r}: the safeguard is elsewhere now")
    source = script.source.replace(text, instead)
    sha = sha1(source.encode(), usedforsecurity=False).hexdigest()
    setattr(scripts, name, replace(script, source=source, sha=sha))
