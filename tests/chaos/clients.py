"""Clients that do not give up: every planned job is submitted until the server says yes.

A lost connection and a 503 are tried again with the same idempotency key, as `docs/http.md` asks.
Some cancel; some ask twice. Whose deadline is refused as too soon asks again without. What the
server has promised is kept as an `Accepted`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.chaos.plan import KEYED_API, OPEN_API, Plan, PlannedJob

TIMEOUT_SECONDS = 5.0
PAUSE_SECONDS = 0.2
MOST_CONNECTIONS = 64


@dataclass
class Accepted:
    """A job that the server took: all ids it has been told under, one if all is well.

    `deadline_seconds` is the deadline that it was taken with.
    """

    planned: PlannedJob
    ids: list[str] = field(default_factory=list)
    cancel_asked: bool = False
    deadline_seconds: float | None = None

    @property
    def id(self) -> str:
        return self.ids[0]


class Clients:
    """All clients of a run. `accepted` grows as jobs are taken, `refused` counts deadlines.

    `urls` are those of the APIs by name, `tokens` the API keys.
    """

    def __init__(self, urls: Mapping[str, str], tokens: Sequence[str], plan: Plan) -> None:
        self._urls = urls
        self._tokens = tokens
        self._plan = plan
        self._http = httpx2.AsyncClient(
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
            verify=False,
            limits=httpx2.Limits(max_connections=MOST_CONNECTIONS),
        )
        self.accepted: list[Accepted] = []
        self.retries = 0
        self.refused = 0

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

    async def insist(
        self, method: str, path: str, api_key: int | None = None, **options: Any
    ) -> httpx2.Response:
        """The answer of a server that is there, to whoever has this API key or none.

        Not a lost connection, and no 503 but that of a deadline.
        """
        url = self._urls[OPEN_API if api_key is None else KEYED_API] + path
        auth = {} if api_key is None else {"Authorization": f"Bearer {self._tokens[api_key]}"}
        headers = options.pop("headers", {}) | auth
        while True:
            try:
                response = await self._http.request(method, url, headers=headers, **options)
                if response.status_code != 503 or is_too_soon(response):
                    return response
            except httpx2.TransportError:
                pass
            self.retries += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def _one(self, planned: PlannedJob) -> None:
        await asyncio.sleep(planned.at)
        job = Accepted(planned)
        job.deadline_seconds = planned.deadline_seconds
        job.ids.append(await self._submit(job))
        self.accepted.append(job)
        if planned.sent_twice:
            await asyncio.sleep(PAUSE_SECONDS)
            again = await self._submit(job)
            if again != job.id:
                job.ids.append(again)
        if planned.cancel_after is not None:
            await asyncio.sleep(planned.cancel_after)
            job.cancel_asked = True
            response = await self.insist("POST", f"/v1/jobs/{job.id}/cancel", planned.api_key)
            response.raise_for_status()

    async def _submit(self, job: Accepted) -> str:
        planned = job.planned
        body = {
            "model": "fake",
            "input": planned.input,
            "priority": planned.priority,
            "deterministic": planned.deterministic,
        }
        while True:
            response = await self.insist(
                "POST",
                "/v1/jobs",
                planned.api_key,
                headers={"Idempotency-Key": f"chaos-{self._plan.seed}-{planned.number}"},
                json=body | ({"deadline_seconds": d} if (d := job.deadline_seconds) else {}),
            )
            if not is_too_soon(response):
                response.raise_for_status()
                return str(response.json()["id"])
            self.refused += 1
            job.deadline_seconds = None


def is_too_soon(response: httpx2.Response) -> bool:
    """Whether a job was refused since it would not end before its deadline."""
    return response.status_code in (422, 503) and response.json().get("code") == "deadline_exceeded"
