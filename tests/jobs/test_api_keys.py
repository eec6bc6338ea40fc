"""API keys at rest and in use: what Redis holds of them, who passes, and what is whose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings
from jobs.api_keys import KeyRing, KeyStore, Quotas
from jobs.errors import ApiKeyNotFound, JobNotFound
from jobs.keeper import Keeper
from jobs.store import JobStore
from jobs.types import NewJob

MakeJob = Callable[..., NewJob]


@pytest.fixture
def key_store(redis_client: Redis) -> KeyStore:
    return KeyStore(redis_client)


async def test_a_token_passes_until_its_key_is_revoked(
    redis: AsyncRedis, key_store: KeyStore
) -> None:
    quotas = Quotas(max_queued=3, gpu_seconds_per_day=1.5)
    key, token = key_store.create("studio", quotas)
    ring = KeyRing(redis)
    assert await ring.check(token) == key
    assert key_store.all() == [key]
    key_store.revoke(key.id)
    assert await ring.check(token) is None
    assert key_store.all() == []
    with pytest.raises(ApiKeyNotFound):
        key_store.revoke(key.id)


async def test_nothing_but_the_whole_token_passes(redis: AsyncRedis, key_store: KeyStore) -> None:
    key, token = key_store.create("a")
    _, other = key_store.create("b")
    swapped = f"dn_{key.id}_{other.rpartition(key.id)[2][-43:]}"
    ring = KeyRing(redis)
    for wrong in ("", token[:-1], token + "A", token.upper(), swapped, "dn_", f"Bearer {token}"):
        assert await ring.check(wrong) is None, wrong


def test_redis_never_holds_the_secret(redis_client: Redis, key_store: KeyStore) -> None:
    key, token = key_store.create("studio")
    secret = token.removeprefix(f"dn_{key.id}_").encode()
    for name in redis_client.keys("*"):
        assert secret not in redis_client.dump(name), name


async def test_the_memory_of_a_first_key_outlives_its_revocation(
    redis: AsyncRedis, key_store: KeyStore
) -> None:
    """Or a server on a loopback address would open when its last key is revoked."""
    ring = KeyRing(redis)
    assert not await ring.any_made()
    key, _ = key_store.create("studio")
    key_store.revoke(key.id)
    assert await ring.any_made()


async def test_jobs_of_others_are_not_found(store: JobStore, make_job: MakeJob) -> None:
    mine, _ = await store.submit(make_job(owner="a"))
    for other in ("b", ""):
        for refused in (store.get, store.cancel, store.delete):
            with pytest.raises(JobNotFound):
                await refused(mine.id, other)
    assert (await store.get(mine.id, "a")).status == "queued"
    assert (await store.cancel(mine.id, "a")).status == "cancelled"
    await store.delete(mine.id, "a")
    with pytest.raises(JobNotFound):
        await store.get(mine.id, "a")


async def test_a_listing_and_its_pages_hold_only_ones_own(
    store: JobStore, make_job: MakeJob
) -> None:
    ids: dict[str, list[str]] = {"a": [], "b": [], "": []}
    for n in range(12):
        owner = ("a", "b", "")[n % 3]
        record, _ = await store.submit(make_job(owner=owner))
        ids[owner].insert(0, record.id)
    for owner, expected in ids.items():
        first, cursor = await store.list(limit=3, owner=owner)
        second, _ = await store.list(limit=3, owner=owner, cursor=cursor)
        assert [record.id for record in first + second] == expected


async def test_a_listing_forgets_jobs_whose_record_has_expired(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    settings: Settings,
    keeper: Keeper,
) -> None:
    key, _ = KeyStore(redis_client).create("studio")
    listing = f"denoised:jobs:{key.id}"
    gone, kept, new = [
        (await store.submit(make_job(owner=key.id)))[0].id.encode() for _ in range(3)
    ]
    long_ago = (redis_client.time()[0] - settings.result_ttl_seconds - 1) * 1e6
    redis_client.zadd(listing, {gone: long_ago, kept: long_ago})
    redis_client.delete(f"rq:job:{gone.decode()}")
    keeper.run_once()
    assert redis_client.zrange(listing, 0, -1) == [kept, new]


def test_a_revoked_key_leaves_no_account_of_its_share(redis_client: Redis, keeper: Keeper) -> None:
    good, _ = KeyStore(redis_client).create("studio")
    for name in ("denoised:fair", "denoised:served"):
        redis_client.hset(name, mapping={"": 1, good.id: 2, "revoked": 3})
    for owner in (good.id, "revoked"):
        redis_client.sadd(f"denoised:held:{owner}", "job_1")
    keeper.run_once()
    assert redis_client.keys("denoised:held:*") == [f"denoised:held:{good.id}".encode()]
    for name in ("denoised:fair", "denoised:served"):
        assert set(redis_client.hkeys(name)) == {b"", good.id.encode()}


async def test_idempotency_keys_of_two_owners_do_not_meet(
    store: JobStore, make_job: MakeJob
) -> None:
    records = [
        (await store.submit(make_job(owner=owner, idempotency_key="k", fingerprint="f")))[0]
        for owner in ("a", "b", "", "a")
    ]
    assert records[0] == records[3]
    assert len({record.id for record in records}) == 3
