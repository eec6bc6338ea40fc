"""Prometheus metrics of the job layer, counted where each change of state is made.

Counters and histograms only, so that every process can count for itself and multiprocess mode
(`PROMETHEUS_MULTIPROC_DIR`) adds them up. Queue depths are gauges of the whole deployment and are
read from `JobStore.stats()` when scraped.
"""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from jobs.rq_record import FROM_RQ

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
"""Bucket bounds that fit a doorbell as well as a long clip."""

JOBS_SUBMITTED = Counter(
    "denoised_jobs_submitted_total", "Jobs accepted onto a queue.", ["model", "priority"]
)
JOBS_FINISHED = Counter(
    "denoised_jobs_finished_total", "Jobs that reached a terminal state.", ["model", "outcome"]
)
JOBS_REQUEUED = Counter(
    "denoised_jobs_requeued_total", "Running jobs put back on their queue.", ["cause"]
)
JOB_QUEUE_SECONDS = Histogram(
    "denoised_job_queue_seconds",
    "Seconds from the latest enqueueing of a job to its claim.",
    ["model"],
    buckets=SECONDS,
)
JOB_RUN_SECONDS = Histogram(
    "denoised_job_run_seconds",
    "Seconds from the last claim of a job to its end.",
    ["model"],
    buckets=SECONDS,
)
CANCEL_SECONDS = Histogram(
    "denoised_cancel_seconds",
    "Seconds from the request to cancel a running job to its end.",
    buckets=SECONDS,
)

ETA_ERROR_RATIO = Histogram(
    "denoised_eta_error_ratio",
    "Difference between the time to its end that a job was given when it was submitted and the "
    "time it took, by the latter.",
    buckets=(0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10),
)


def count_put_back(model: str, cause: str, result: str) -> None:
    """Counts what became of a job that left its worker without a result."""
    if result == "requeued":
        JOBS_REQUEUED.labels(cause).inc()
    elif result in FROM_RQ:
        JOBS_FINISHED.labels(model, FROM_RQ[result].value).inc()
