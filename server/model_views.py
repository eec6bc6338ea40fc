"""From a `ModelSpec` and the workers' announcements to the JSON under `/v1/models`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from config.model_spec import FloatParameter, IntParameter, ModelSpec
from jobs.schema import input_json_schema
from jobs.worker_registry import WorkerInfo
from server.schemas import Model, Residency

_PARAMETERS = ("width", "height", "num_inference_steps", "guidance_scale")
_VIDEO_PARAMETERS = ("num_frames", "fps", "flow_shift", "conditioning_scale")


def model_view(spec: ModelSpec, workers: Sequence[WorkerInfo]) -> Model:
    """The public form of a model; the folder of its weights stays private."""
    limits: dict[str, Any] = {"prompt": {"max_chars": spec.max_prompt_chars}}
    defaults: dict[str, Any] = {"sampler": spec.samplers[0]}
    for name, parameter in _parameters(spec).items():
        limits[name] = {"minimum": parameter.minimum, "maximum": parameter.maximum}
        if isinstance(parameter, IntParameter):
            limits[name]["multiple_of"] = parameter.multiple_of
        defaults[name] = parameter.default
    if spec.video is not None:
        limits["conditioning_scale"]["max_items"] = spec.video.num_conditioning_scales
        limits["reference_images"] = {"max_items": spec.video.max_reference_images}
        limits["num_frames"]["max_total_pixels"] = spec.video.max_pixels
    return Model(
        id=spec.id,
        family=spec.family,
        task=spec.task,
        description=spec.description,
        limits=limits,
        defaults=defaults,
        samplers=list(spec.samplers),
        residency=residency(spec.id, workers),
        input_schema=input_json_schema(spec),
    )


def _parameters(spec: ModelSpec) -> dict[str, IntParameter | FloatParameter]:
    if spec.video is None:
        return {name: getattr(spec, name) for name in (*_PARAMETERS, "num_images")}
    return {name: getattr(spec, name) for name in _PARAMETERS} | {
        name: getattr(spec.video, name) for name in _VIDEO_PARAMETERS
    }


def residency(model_id: str, workers: Sequence[WorkerInfo]) -> Residency:
    """Resident if any worker holds the model; else whether one would load it for a job, or is
    about to; else unavailable.
    """
    holders = [worker for worker in workers if model_id in worker.models]
    error = next((w.model_errors[model_id] for w in workers if model_id in w.model_errors), None)
    if holders:
        mode = holders[0].residency.get(model_id)
        return Residency(
            state="resident",
            mode=mode,
            memory_bytes=memory_bytes(model_id, holders),
            workers=len(holders),
            error=error,
        )
    if any(worker.loading == model_id for worker in workers):
        return Residency(state="loading", workers=0, error=error)
    if any(model_id in worker.on_demand for worker in workers):
        return Residency(state="on_demand", workers=0, error=error)
    if any(w.state == "starting" and model_id not in w.model_errors for w in workers):
        return Residency(state="loading", workers=0, error=error)
    return Residency(state="unavailable", workers=0, error=error or "No live worker serves it.")


def memory_bytes(model_id: str, workers: Sequence[WorkerInfo]) -> int | None:
    """The most device memory that a worker has measured for the model's weights; None before."""
    return max(
        (w.model_bytes[model_id] for w in workers if model_id in w.model_bytes), default=None
    )
