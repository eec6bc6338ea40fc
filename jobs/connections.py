"""Redis clients with the time limits the job layer counts on.

Workers retry by themselves (`jobs.lease`), so the blocking client fails at once; the asyncio client
retries briefly, which hides a restarted Redis behind pooled connections, and then gives up so that
the API can answer 503.
"""

from __future__ import annotations

from redis import Redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

SOCKET_TIMEOUT = 5.0
"""Seconds until an unanswered command counts as a lost connection."""

POOL_SIZE = 32
"""Connections of one API process; more callers wait their turn."""


def connect(url: str) -> Redis:
    """A blocking client; replies are bytes. `url` is redis://, rediss:// or unix://."""
    return Redis.from_url(
        url,
        socket_timeout=SOCKET_TIMEOUT,
        socket_connect_timeout=SOCKET_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )


def connect_async(url: str) -> AsyncRedis:
    """An asyncio client on a bounded pool that it owns; replies are bytes."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=POOL_SIZE,
        timeout=SOCKET_TIMEOUT,
        socket_timeout=SOCKET_TIMEOUT,
        socket_connect_timeout=SOCKET_TIMEOUT,
        retry=AsyncRetry(ExponentialBackoff(cap=0.2, base=0.02), 2),
        protocol=2,
    )
    return AsyncRedis.from_pool(pool)
