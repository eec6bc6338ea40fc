"""Prometheus metrics of the HTTP side, and the page that `/metrics` serves.

Counters and histograms live in this process or, with `PROMETHEUS_MULTIPROC_DIR`, in files shared by
all processes of the machine. The state of the queue has one truth, Redis: its gauges are read there
at scrape time and are absent while Redis does not answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from jobs.store import QueueStats
from jobs.worker_registry import WorkerInfo

SSE_WATCHERS = Gauge("denoised_sse_watchers", "Open event streams.", multiprocess_mode="livesum")
HTTP_REQUEST_SECONDS = Histogram(
    "denoised_http_request_seconds",
    "Seconds from a request to the head of its response.",
    ["route", "method", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60),
)


def exposition(gauges: Sequence[Metric], accept: str) -> tuple[bytes, str]:
    """The metrics page and its content type, in the format that the Accept header asks for."""
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry)
    else:
        registry.register(REGISTRY)
    registry.register(_Fixed(gauges))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Fixed(Collector):
    """Metrics that were read elsewhere, ready to be encoded."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def queue_gauges(
    stats: QueueStats, models: Sequence[str], workers: Sequence[WorkerInfo]
) -> list[Metric]:
    """Depth, running jobs, age and residency as gauges; models without jobs read 0."""
    queued = GaugeMetricFamily(
        "denoised_jobs_queued", "Jobs waiting.", labels=["model", "priority"]
    )
    running = GaugeMetricFamily("denoised_jobs_running", "Jobs under a lease.", labels=["model"])
    oldest = GaugeMetricFamily(
        "denoised_queue_oldest_seconds", "Age of the longest waiting job.", labels=["model"]
    )
    resident = GaugeMetricFamily(
        "denoised_model_resident", "Live workers that hold the model.", labels=["model"]
    )
    gpu_seconds = GaugeMetricFamily(
        "denoised_queue_gpu_seconds",
        "Estimated device time of the jobs waiting; absent until the model is measured.",
        labels=["model"],
    )
    for queue in stats.queues:
        queued.add_metric([queue.model, queue.priority], queue.queued)
    for model in sorted({*models, *(queue.model for queue in stats.queues)}):
        of_model = [queue for queue in stats.queues if queue.model == model]
        running.add_metric([model], sum(queue.running for queue in of_model))
        oldest.add_metric(
            [model], max((queue.oldest_seconds or 0.0 for queue in of_model), default=0.0)
        )
        costs = [queue.gpu_seconds for queue in of_model if queue.gpu_seconds is not None]
        if of_model and len(costs) == len(of_model):
            gpu_seconds.add_metric([model], sum(costs))
        resident.add_metric([model], sum(model in worker.models for worker in workers))
    return [queued, running, oldest, gpu_seconds, resident]
