"""The blows of a plan, carried out in their time on a fleet, and counted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter

from tests.chaos.fleet import Fleet
from tests.chaos.launcher import clock_file, full_disk_file, slow_disk_file
from tests.chaos.plan import Blow, Plan


class Attack:
    """Runs the blows of `plan`; `done` counts by kind those that hit."""

    def __init__(self, fleet: Fleet, plan: Plan) -> None:
        self._fleet = fleet
        self._plan = plan
        self._clocks = asyncio.Lock()
        self.done: Counter[str] = Counter()

    @property
    def kills(self) -> int:
        """Processes that were killed."""
        return self.done["kill"]

    @property
    def outages(self) -> int:
        """How often Redis went away."""
        return self.done["redis-kill"] + self.done["redis-freeze"]

    async def run(self) -> None:
        """Returns when every blow has been dealt and is over."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._to_redis())
            for blow in self._plan.blows:
                if not blow.kind.startswith("redis"):
                    group.create_task(self._one(blow))

    async def _to_redis(self) -> None:
        """One after the other: there is only one Redis to take away."""
        began = asyncio.get_running_loop().time()
        for blow in self._plan.blows:
            if blow.kind.startswith("redis"):
                await asyncio.sleep(began + blow.at - asyncio.get_running_loop().time())
                if blow.kind == "redis-kill":
                    self._fleet.kill_redis()
                    await asyncio.sleep(blow.seconds)
                    self._fleet.start_redis()
                else:
                    pid = self._fleet.redis.pid
                    os.kill(pid, signal.SIGSTOP)
                    await asyncio.sleep(blow.seconds)
                    os.kill(pid, signal.SIGCONT)
                self.done[blow.kind] += 1

    async def _one(self, blow: Blow) -> None:
        await asyncio.sleep(blow.at)
        fleet = self._fleet
        match blow.kind:
            case "kill":
                await fleet.send(blow.target, signal.SIGKILL)
            case "stop":
                await fleet.send(blow.target, signal.SIGTERM)
            case "freeze":
                await fleet.freeze(blow.target, blow.seconds)
            case "clock":
                await self._move_clock(blow)
            case "disk-full":
                full = full_disk_file(fleet.control)
                full.touch()
                await asyncio.sleep(blow.seconds)
                full.unlink(missing_ok=True)
            case "disk-slow":
                slow = slow_disk_file(fleet.control)
                slow.write_text(str(blow.delay))
                await asyncio.sleep(blow.seconds)
                slow.unlink(missing_ok=True)
        self.done[blow.kind] += 1

    async def _move_clock(self, blow: Blow) -> None:
        """The wall clock jumps; the monotonic one only a little and only ahead, as after a sleep.

        More would look like a hang to a worker, which then ends, as it should.
        """
        async with self._clocks:
            ahead = min(max(blow.seconds, 0.0), 1.0)
            new = clock_file(self._fleet.control).with_suffix(".new")
            new.write_text(json.dumps({"wall": blow.seconds, "monotonic": ahead}))
            new.replace(clock_file(self._fleet.control))
            await self._fleet.send(blow.target, signal.SIGUSR1)
            # The process reads the file when the signal arrives.
            await asyncio.sleep(0.5)
