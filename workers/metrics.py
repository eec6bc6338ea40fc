"""What a worker measures about its models, as Prometheus metrics.

Works in multiprocess mode: the API process adds up what every worker wrote. Seconds and bytes;
labels never hold a job, a prompt or a key.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

STEP_SECONDS = Histogram(
    "denoised_step_seconds", "One denoise step of one batch.", ["model"], buckets=_BOUNDS
)
BATCH_SIZE = Histogram(
    "denoised_batch_size", "Images in one denoise step.", ["model"], buckets=(1, 2, 4, 8, 16, 32)
)
STAGE_SECONDS = Histogram(
    "denoised_stage_seconds",
    "Seconds one job took in a stage; steps of others do not count.",
    ["model", "stage"],
    buckets=_BOUNDS,
)
MODEL_LOAD_SECONDS = Histogram(
    "denoised_model_load_seconds",
    "From checkpoint files to a resident model.",
    ["model"],
    buckets=(0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
)
CHECKPOINT_SECONDS = Histogram(
    "denoised_checkpoint_seconds",
    "From the copy of a job's state to its stored and recorded checkpoint; steps go on meanwhile.",
    buckets=_BOUNDS,
)
RESUMED_STEPS = Counter(
    "denoised_resumed_steps_total", "Denoise steps that checkpoints saved from being taken again."
)
GPU_MEMORY_BYTES = Gauge(
    "denoised_gpu_memory_bytes",
    "CUDA memory by kind: allocated, reserved, peak, total; absent on the CPU.",
    ["kind"],
    multiprocess_mode="livesum",
)
