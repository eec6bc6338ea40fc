"""API keys: who may use a server, whose jobs are whose, and how much each may ask for.

A key is shown once, as `dn_<id>_<secret>`. Redis keeps its public id, a SHA-256 digest of the
secret (256 random bits, so a slow hash would add nothing), a name for people and its quotas. The id
is what jobs and files carry as their owner. Nothing is cached: a revoked key is refused from the
next request on. What was accepted from it still runs to its end.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from jobs import keys
from jobs.errors import ApiKeyNotFound, store_errors
from jobs.rq_record import time_from_us

ANONYMOUS = ""
"""The owner of what came without a key."""

_TOKEN = re.compile(r"dn_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NO_DIGEST = "0" * 64


class Quotas(BaseModel):
    """What one key may have at a time and in a day (UTC); None is without limit.

    More waiting jobs and more in a day are refused; jobs past `max_running` wait.
    """

    model_config = ConfigDict(frozen=True)

    max_queued: int | None = Field(default=None, ge=1, description="Jobs waiting.")
    max_running: int | None = Field(default=None, ge=1, description="Jobs under a lease.")
    jobs_per_day: int | None = Field(default=None, ge=1, description="Jobs accepted.")
    gpu_seconds_per_day: float | None = Field(default=None, gt=0, description="Device time used.")


UNLIMITED = Quotas()


class ApiKey(BaseModel):
    """One key as it may be shown: everything but its secret."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    created_at: datetime
    quotas: Quotas = UNLIMITED


class KeyStore:
    """Making, listing and revoking keys, for the command line.

    `redis` answers in bytes. Every method raises `StoreUnavailable` when it cannot be reached.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def create(self, name: str, quotas: Quotas = UNLIMITED) -> tuple[ApiKey, str]:
        """A new key, and the token to send with requests, which cannot be had again."""
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        fields = {"name": name, "digest": _digest(secret)} | quotas.model_dump(exclude_none=True)
        with store_errors():
            seconds, micros = self._redis.time()
            created_us = int(seconds) * 1_000_000 + int(micros)
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hset(keys.api_key(key_id), mapping=fields | {"created_us": created_us})
            pipeline.zadd(keys.API_KEYS, {key_id: created_us})
            # Never taken back: a server must not open when its last key is revoked.
            pipeline.incr(keys.API_KEYS_MADE)
            pipeline.execute()
        key = ApiKey(id=key_id, name=name, created_at=time_from_us(created_us), quotas=quotas)
        return key, f"dn_{key_id}_{secret}"

    def all(self) -> list[ApiKey]:
        """All keys that are good, oldest first."""
        with store_errors():
            rows = cast("list[bytes]", self._redis.zrange(keys.API_KEYS, 0, -1))
            ids = [key_id.decode() for key_id in rows]
            pipeline = self._redis.pipeline(transaction=False)
            for key_id in ids:
                pipeline.hgetall(keys.api_key(key_id))
            found = pipeline.execute()
        return [
            _api_key(key_id, fields) for key_id, fields in zip(ids, found, strict=True) if fields
        ]

    def revoke(self, key_id: str) -> None:
        """Refuses the key from now on. Raises `ApiKeyNotFound`."""
        with store_errors():
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.delete(keys.api_key(key_id))
            pipeline.zrem(keys.API_KEYS, key_id)
            # Nobody can ask for these any more; the jobs and files end in their own time.
            pipeline.delete(keys.listing(keys.INDEX, key_id))
            pipeline.delete(keys.listing(keys.FILE_INDEX, key_id))
            deleted, *_ = pipeline.execute()
        if not deleted:
            raise ApiKeyNotFound(key_id)


class KeyRing:
    """Telling a good key from a bad one, for an asyncio server: one round trip each.

    Every method raises `StoreUnavailable` when Redis cannot be reached.
    """

    def __init__(self, redis: AsyncRedis) -> None:
        self._redis = redis

    async def check(self, token: str) -> ApiKey | None:
        """The key that `token` belongs to; None for anything that is no good key."""
        found = _TOKEN.fullmatch(token)
        if found is None:
            return None
        key_id, secret = found.groups()
        with store_errors():
            fields = await cast("Any", self._redis.hgetall(keys.api_key(key_id)))
        expected = fields.get(b"digest", _NO_DIGEST.encode())
        if not hmac.compare_digest(_digest(secret).encode(), expected):
            return None
        return _api_key(key_id, fields)

    async def any_made(self) -> bool:
        """Whether a key was ever made here, good or revoked."""
        with store_errors():
            return bool(await self._redis.exists(keys.API_KEYS_MADE))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _api_key(key_id: str, fields: Mapping[bytes, bytes]) -> ApiKey:
    texts = {name.decode(): value.decode() for name, value in fields.items()}
    return ApiKey(
        id=key_id,
        name=texts["name"],
        created_at=time_from_us(int(texts["created_us"])),
        quotas=Quotas.model_validate(
            {name: texts[name] for name in Quotas.model_fields if name in texts}
        ),
    )
