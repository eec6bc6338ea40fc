"""Clients that do not give up: every planned job is submitted until the server says yes.

A lost connection and a 503 are tried again with the same idempotency key, as `docs/http.md` asks.
Some cancel; some ask twice. What the server has promised is kept as an `Accepted`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.chaos.plan import Plan, PlannedJob

TIMEOUT_SECONDS = 5.0
PAUSE_SECONDS = 0.2
MOST_CONNECTIONS = 64


@dataclass
class Accepted:
    """A job that the server took: all ids it has been told under, one if all is well."""

    planned: PlannedJob
    ids: list[str] = field(default_factory=list)
    cancel_asked: bool = False

    @property
    def id(self) -> str:
        return self.ids[0]


class Clients:
    """All clients of a run against the API at `url`. `accepted` grows as jobs are taken."""

    def __init__(self, url: str, plan: Plan) -> None:
        self._plan = plan
        self._http = httpx2.AsyncClient(
            base_url=url,
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
            verify=False,
            limits=httpx2.Limits(max_connections=MOST_CONNECTIONS),
        )
        self.accepted: list[Accepted] = []
        self.retries = 0

    async def __aenter__(self) -> Clients:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ready(self, workers: int) -> None:
        """Returns when a job would make progress and so many workers have announced themselves."""
        while True:
            response = await self.insist("GET", "/readyz")
            if response.status_code == 200 and response.json()["workers"] >= workers:
                return
            await asyncio.sleep(PAUSE_SECONDS)

    async def run(self) -> None:
        """Returns when every planned job has been accepted, and cancelled where it is to be."""
        async with asyncio.TaskGroup() as group:
            for planned in self._plan.jobs:
                group.create_task(self._one(planned))

    async def insist(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """The answer of a server that is there: not a lost connection and not a 503."""
        while True:
            try:
                response = await self._http.request(method, path, **options)
                if response.status_code != 503:
                    return response
            except httpx2.TransportError:
                pass
            self.retries += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def _one(self, planned: PlannedJob) -> None:
        await asyncio.sleep(planned.at)
        job = Accepted(planned)
        job.ids.append(await self._submit(planned))
        self.accepted.append(job)
        if planned.sent_twice:
            await asyncio.sleep(PAUSE_SECONDS)
            again = await self._submit(planned)
            if again != job.id:
                job.ids.append(again)
        if planned.cancel_after is not None:
            await asyncio.sleep(planned.cancel_after)
            job.cancel_asked = True
            response = await self.insist("POST", f"/v1/jobs/{job.id}/cancel")
            response.raise_for_status()

    async def _submit(self, planned: PlannedJob) -> str:
        response = await self.insist(
            "POST",
            "/v1/jobs",
            headers={"Idempotency-Key": f"chaos-{self._plan.seed}-{planned.number}"},
            json={
                "model": "fake",
                "input": planned.input,
                "priority": planned.priority,
                "deterministic": planned.deterministic,
            },
        )
        response.raise_for_status()
        return str(response.json()["id"])
