"""How much memory of this machine is free to be taken."""

from __future__ import annotations

import os


def available_host_bytes() -> int:
    """Memory that can be taken without swapping, counting what caches would give back."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
