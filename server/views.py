"""From a `JobRecord` to the JSON that clients see.

Nothing internal passes: no blob key, no path of this machine.
"""

from __future__ import annotations

from jobs.types import JobFailure, JobRecord, Output, Status
from server.schemas import (
    Job,
    JobError,
    JobLinks,
    JobOutput,
    JobProgress,
    JobUsage,
    QueuePlace,
)


def job_url(job_id: str, root_path: str = "") -> str:
    """Reference to a job, under the prefix that a proxy serves this application at."""
    return f"{root_path}/v1/jobs/{job_id}"


def output_url(job_id: str, index: int, root_path: str = "") -> str:
    """Reference to the bytes of one output."""
    return f"{job_url(job_id, root_path)}/outputs/{index}"


def job_view(record: JobRecord, root_path: str = "") -> Job:
    """The public form of a record."""
    url = job_url(record.id, root_path)
    outputs = [_output_view(record.id, n, o, root_path) for n, o in enumerate(record.outputs)]
    return Job(
        id=record.id,
        model=record.model,
        status=record.status,
        stage=record.stage if record.status is Status.RUNNING else None,
        attempt=record.attempt,
        priority=record.priority,
        deterministic=record.deterministic,
        cancel_requested=record.cancel_requested,
        created_at=record.created_at,
        deadline_at=record.deadline_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        queue=(
            QueuePlace(
                position=record.queue_position,
                estimated_start_at=record.estimated_start_at,
                estimated_finish_at=record.estimated_finish_at,
            )
            if record.queue_position is not None
            else None
        ),
        progress=JobProgress(
            step=record.step,
            total_steps=record.total_steps,
            percent=percent(record.step, record.total_steps),
            eta_seconds=record.eta_seconds if record.status is Status.RUNNING else None,
        ),
        input=record.input,
        outputs=outputs,
        error=_error_view(record.error) if record.error is not None else None,
        usage=JobUsage(
            gpu_seconds=record.usage.gpu_seconds,
            steps=record.usage.steps,
            resumed_steps=record.usage.resumed_steps,
        ),
        links=JobLinks(
            self=url,
            events=f"{url}/events",
            cancel=f"{url}/cancel",
            outputs=[output.url for output in outputs],
        ),
        metadata=record.metadata,
    )


def percent(step: int, total_steps: int) -> float:
    """Share of the denoise steps done, 0..100 with one decimal."""
    return round(100 * step / total_steps, 1) if total_steps else 0.0


def _error_view(failure: JobFailure) -> JobError:
    return JobError(
        code=failure.code,
        message=failure.message,
        param=failure.param,
        retryable=failure.retryable,
    )


def _output_view(job_id: str, index: int, output: Output, root_path: str) -> JobOutput:
    return JobOutput(
        index=index,
        url=output_url(job_id, index, root_path),
        content_type=output.content_type,
        width=output.width,
        height=output.height,
        bytes=output.bytes,
        sha256=output.sha256,
        seed=output.seed,
        codec=output.codec,
        num_frames=output.num_frames,
        fps=output.fps,
        duration_seconds=output.duration_seconds,
        variants=list(output.variants),
    )
