"""What routes work with: the clients opened at start-up, handed to every request.

One `Services` lives per application, made by the lifespan and found through `get_services`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from redis.asyncio import Redis

from config.model_spec import ModelSpec
from config.settings import Settings
from jobs.api_keys import KeyRing
from jobs.blobs import FileBlobStore
from jobs.connections import connect_async
from jobs.events import EventHub
from jobs.files import FileStore, media_limits
from jobs.job_inputs import JobInputs
from jobs.media.inspector import MediaInspector
from jobs.store import JobStore


@dataclass(frozen=True)
class Services:
    """Open connections and the things known at start. `stopping` is set when the server drains."""

    settings: Settings
    specs: Mapping[str, ModelSpec]
    redis: Redis
    store: JobStore
    hub: EventHub
    blobs: FileBlobStore
    files: FileStore
    inputs: JobInputs
    inspector: MediaInspector
    key_ring: KeyRing
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def open_services(settings: Settings, specs: Sequence[ModelSpec]) -> AsyncIterator[Services]:
    """Connections for one application, closed at the end. Redis need not answer yet.

    Raises ValueError if `settings.redis_url` is not set.
    """
    if settings.redis_url is None:
        raise ValueError("the HTTP side needs settings.redis_url")
    redis = connect_async(settings.redis_url)
    hub = EventHub(redis)
    blobs = FileBlobStore(settings.blob_dir)
    files = FileStore(redis, blobs, settings)
    inspector = MediaInspector(media_limits(settings), seconds=settings.file_check_seconds)
    try:
        yield Services(
            settings=settings,
            specs={spec.id: spec for spec in specs},
            redis=redis,
            store=JobStore(redis, settings),
            hub=hub,
            blobs=blobs,
            files=files,
            inputs=JobInputs(files, blobs, inspector, settings),
            inspector=inspector,
            key_ring=KeyRing(redis),
        )
    finally:
        await asyncio.to_thread(inspector.close)
        await hub.close()
        await redis.aclose()


def get_services(request: Request) -> Services:
    """The application's services, for use as a dependency."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]
