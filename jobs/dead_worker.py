"""What is done when somebody saw a worker process end: its jobs are taken back at once, its name
comes off the list of workers.

The keeper learns of a death only from lapsed leases. Whoever runs workers sees their processes end
and can say so. The fence is the same: should the worker live after all, its writes are refused.
"""

from __future__ import annotations

import logging

from redis import Redis

from config.settings import Settings
from jobs import scripts
from jobs.metrics import count_put_back
from jobs.worker_registry import forget

log = logging.getLogger(__name__)

CAUSE = "worker_died"
"""Shows in the job.requeued event, which `scripts/worker_died.lua` writes."""


def take_back(redis: Redis, settings: Settings, worker: str) -> list[str]:
    """Puts the jobs that `worker` holds back on their queues and takes it off the list of workers,
    where its word would stand until it expires; returns the jobs' ids.

    `worker` is its whole name, as in the registry and in the jobs' records. The attempt counts; a
    job that has none left fails with worker_lost, one whose cancellation was asked for ends as
    cancelled, every other goes on from its checkpoint. A second call finds nothing. Raises
    `RedisError`, also when Redis is away; the keeper then does it when the leases lapse.
    """
    args: list[scripts.Argument] = [
        worker,
        settings.result_ttl_seconds,
        settings.event_ttl_seconds,
    ]
    taken = []
    for job_id, model, result in scripts.run(redis, scripts.WORKER_DIED, args):
        taken.append(job_id.decode())
        count_put_back(model.decode(), CAUSE, result.decode())
        log.warning("took job %s back from %s: %s", job_id.decode(), worker, result.decode())
    # Last: should Redis go away in between, the jobs are back and the entry expires by itself.
    forget(redis, worker)
    return taken
