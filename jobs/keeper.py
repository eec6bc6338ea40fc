"""The keeper: takes jobs back from dead workers, forgets what has expired, sweeps stray blobs.

Any number may run; every decision is a script, so two keepers never do the same thing twice. One
process per machine runs it in a loop (`denoised keeper`). Jobs are taken back in one thread and the
rest is done in another, so that no disk, however full or slow, holds up the former.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar, cast

from redis import Redis
from redis.exceptions import RedisError

from config.settings import Settings
from jobs import checkpoints, keys, scripts
from jobs.blobs import INPUTS, ExecutionBlobs, FileBlobStore, UploadBlob, job_prefix
from jobs.metrics import count_put_back
from jobs.worker_registry import forget_dead

log = logging.getLogger(__name__)

BATCH = 100
"""Most jobs handled in one script call, so that Redis is never held up for long."""

PARTIAL_SECONDS = 3600.0
"""An upload that has not grown for this long was broken off."""

LEAVE_SECONDS = 2.0
"""A keeper that is told to stop waits so long for its cleaning; the next one finishes it."""

T = TypeVar("T")


@dataclass(frozen=True)
class KeeperReport:
    """What one round did. `requeued`, `failed` and `cancelled` are ids of jobs taken back."""

    requeued: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()
    expired: int = 0
    orphans: int = 0


class Keeper:
    """Housekeeping over one Redis and one blob store.

    `orphan_grace_seconds`: how long blobs of a fenced-off execution are left alone;
    `sweep_seconds`: least time between two walks over the blob store, the listings and the list of
    workers, and until files that could not be removed are tried again.
    """

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        blobs: FileBlobStore,
        *,
        orphan_grace_seconds: float = 60.0,
        sweep_seconds: float = 60.0,
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._blobs = blobs
        self._orphan_grace_seconds = orphan_grace_seconds
        self._sweep_seconds = sweep_seconds
        self._next_sweep = 0.0

    def run(self, stop: threading.Event) -> None:
        """Reaps and cleans every `settings.reap_seconds` until `stop` is set.

        Rides out a missing Redis and a disk that cannot be cleaned.
        """
        # Beside the reaping and not between it: a walk over the folders of a day of a million jobs
        # takes a minute, a disk that hangs takes any time, and a dead worker's jobs wait meanwhile.
        cleaning = threading.Thread(
            target=self._repeat, args=(self._try_to_clean, stop), name="cleaning", daemon=True
        )
        cleaning.start()
        self._repeat(self._reap, stop)
        cleaning.join(LEAVE_SECONDS)

    def run_once(self) -> KeeperReport:
        """One round: reap, expire, and when it is time, sweep."""
        settled = self._reap()
        expired, orphans = self._clean()
        return KeeperReport(
            requeued=tuple(settled["requeued"]),
            failed=tuple(settled["failed"]),
            cancelled=tuple(settled["canceled"]),
            expired=expired,
            orphans=orphans,
        )

    def _repeat(self, work: Callable[[], object], stop: threading.Event) -> None:
        away = False
        while not stop.is_set():
            try:
                work()
                away = False
            except RedisError as error:
                if not away:
                    log.warning("the keeper waits for Redis: %s", error)
                away = True
            stop.wait(self._settings.reap_seconds)

    def _try_to_clean(self) -> None:
        try:
            self._clean()
        except RedisError:
            raise
        except Exception:
            # Nobody would notice the end of this thread before the disk is full.
            log.exception("the keeper cannot clean up")

    def _clean(self) -> tuple[int, int]:
        """Expires, and when it is time, sweeps; returns how many jobs and how many strays went."""
        expired = self._expire()
        orphans = 0
        if time.monotonic() >= self._next_sweep:
            try:
                # First what needs no disk.
                self._forget_listed()
                forget_dead(self._redis)
                orphans = self._sweep() + self._sweep_uploads()
            finally:
                # After a failure, too: the walk is too long to be begun anew each round.
                self._next_sweep = time.monotonic() + self._sweep_seconds
        return expired, orphans

    def _reap(self) -> dict[str, list[str]]:
        settings = self._settings
        settled: dict[str, list[str]] = {"requeued": [], "failed": [], "canceled": []}
        args: list[scripts.Argument] = [
            settings.lease_seconds,
            BATCH,
            settings.result_ttl_seconds,
            settings.event_ttl_seconds,
            # Living workers get through a shorter silence without losing a lease.
            math.ceil(1000 * max(settings.lease_seconds / 2, 2 * settings.reap_seconds)),
        ]
        for job_id, model, result in scripts.run(self._redis, scripts.REAP, args):
            settled[result.decode()].append(job_id.decode())
            count_put_back(model.decode(), "lease_lapsed", result.decode())
            log.warning("took job %s back: %s", job_id.decode(), result.decode())
        return settled

    def _expire(self) -> int:
        """Removes blobs first: a crash in between leaves the id due, not the files forgotten."""
        now = self._redis_now()
        rows = self._redis.zrangebyscore(keys.EXPIRY, "-inf", now, start=0, num=BATCH)
        gone: list[bytes] = []
        stuck: dict[bytes, OSError] = {}
        for job_id in cast("list[bytes]", rows):
            try:
                self._blobs.delete_prefix(job_prefix(job_id.decode()))
            except ValueError:
                # A stranger's id that is no key has no blobs, and must not stop the keeper.
                pass
            except OSError as error:
                stuck[job_id] = error
                continue
            gone.append(job_id)
        if stuck:
            first, reason = next(iter(stuck.items()))
            log.error(
                "the keeper cannot remove the files of %d job(s), first %s: %s",
                len(stuck),
                first.decode(),
                reason,
            )
            # What is due first is looked at first: left in place, these would keep out the others.
            # One that was put back to work meanwhile is not due again, or later.
            later = now + self._sweep_seconds
            self._redis.zadd(keys.EXPIRY, dict.fromkeys(stuck, later), xx=True, gt=True)
        return int(scripts.run(self._redis, scripts.EXPIRE, gone)) if gone else 0

    def _sweep(self) -> int:
        """Removes blobs of executions that can no longer finish."""
        now = self._blobs.now()
        old = now - self._orphan_grace_seconds
        # A running job's folder of checkpoints is never old: its worker writes there all the time.
        candidates = (
            found
            for found in self._blobs.executions()
            if found.modified <= old or found.execution_id == checkpoints.CHECKPOINTS
        )
        removed = 0
        for part in _batches(candidates):
            listed = [self._checkpoints_in(found) for found in part]
            pipeline = self._redis.pipeline(transaction=False)
            for found in part:
                pipeline.hmget(keys.job(found.job_id), [*checkpoints.FIELDS, "last_exec"])
            for found, stored, fields in zip(part, listed, pipeline.execute(), strict=True):
                try:
                    removed += self._sweep_folder(found, stored, fields, now)
                except OSError as error:
                    log.error("the keeper cannot clean %s: %s", found.prefix, error)
        return removed

    def _checkpoints_in(self, found: ExecutionBlobs) -> list[str]:
        if found.execution_id != checkpoints.CHECKPOINTS:
            return []
        try:
            return self._blobs.keys_in(found.prefix)
        except OSError as error:
            log.error("the keeper cannot read %s: %s", found.prefix, error)
            return []

    def _sweep_folder(
        self, found: ExecutionBlobs, stored: list[str], fields: list[bytes | None], now: float
    ) -> int:
        *known, last_exec = fields
        status, execution, _ = known
        if found.execution_id == checkpoints.CHECKPOINTS and status is not None:
            is_old = found.modified <= now - self._orphan_grace_seconds
            return checkpoints.sweep_checkpoints(self._blobs, found, stored, known, is_old=is_old)
        if not self._is_orphan(found, [status, execution, last_exec], now):
            return 0
        self._blobs.delete_prefix(found.prefix)
        return 1

    def _is_orphan(self, found: ExecutionBlobs, fields: list[bytes | None], now: float) -> bool:
        status, *executions = fields
        if status is None:
            # Redis may have been swapped or emptied: what it does not know is kept for as long as
            # any result would be.
            return found.modified <= now - self._settings.result_ttl_seconds
        if found.execution_id == INPUTS:
            # A job keeps these to its end and beyond: RQ's tools may put it to work again.
            return False
        if status in (b"failed", b"canceled"):
            # Its worker may have stored results that nobody will see.
            return True
        return found.execution_id.encode() not in executions

    def _sweep_uploads(self) -> int:
        """Removes uploads whose time is over, and what broken ones have left."""
        now = self._blobs.now()
        old = now - self._orphan_grace_seconds
        candidates = (found for found in self._blobs.uploads() if found.modified <= old)
        removed = 0
        for part in _batches(candidates):
            pipeline = self._redis.pipeline(transaction=False)
            for found in part:
                pipeline.hget(keys.file(found.file_id), "blob")
            for found, blob in zip(part, pipeline.execute(), strict=True):
                if not self._is_stray(found, blob, now):
                    continue
                try:
                    found.path.unlink(missing_ok=True)
                    removed += 1
                except OSError as error:
                    log.error("the keeper cannot remove %s: %s", found.name, error)
        return removed

    def _forget_listed(self) -> None:
        """Takes entries whose record has expired out of the listings of all API keys, and what is
        kept of keys that were revoked off the books.
        """
        shares = {name: self._redis.hkeys(name) for name in (keys.FAIR, keys.SERVED)}
        owners = cast("list[bytes]", self._redis.zrange(keys.API_KEYS, 0, -1))
        for name, known in shares.items():
            revoked = set(cast("list[bytes]", known)) - {b"", *owners}
            if revoked:
                self._redis.hdel(name, *cast("set[str]", revoked))
                self._redis.delete(*(keys.held(key_id.decode()) for key_id in revoked))
        for index, hashes, ttl in (
            (keys.INDEX, keys.job(""), self._settings.result_ttl_seconds),
            (keys.FILE_INDEX, keys.file(""), self._settings.file_ttl_seconds),
        ):
            before_us = (self._redis_now() - ttl) * 1e6
            for owner in ("", *(key_id.decode() for key_id in owners)):
                listing = keys.listing(index, owner)
                rows = cast("list[bytes]", self._redis.zrangebyscore(listing, "-inf", before_us))
                for start in range(0, len(rows), BATCH):
                    part = rows[start : start + BATCH]
                    scripts.run(self._redis, scripts.PRUNE, [listing, hashes, *part])

    def _is_stray(self, found: UploadBlob, blob: bytes | None, now: float) -> bool:
        if found.is_partial:
            return found.modified <= now - PARTIAL_SECONDS
        if blob is None:
            # As with results: Redis may have been swapped or emptied.
            return found.modified <= now - self._settings.file_ttl_seconds
        return blob != found.name.encode()

    def _redis_now(self) -> float:
        seconds, microseconds = self._redis.time()
        return float(seconds) + float(microseconds) / 1e6


def _batches(items: Iterable[T]) -> Iterable[list[T]]:
    iterator = iter(items)
    while part := list(islice(iterator, BATCH)):
        yield part
