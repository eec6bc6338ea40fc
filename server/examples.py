"""Example documents for the API's description, kept valid by a test."""

from __future__ import annotations

from typing import Any

JOB_ID = "job_0f8fad5bd9cb469fa16570867728950e"

JOB_REQUEST: dict[str, Any] = {
    "model": "sana-demo",
    "input": {"prompt": "a red circle on a blue background", "seed": 7},
    "metadata": {"order": "17"},
}

JOB: dict[str, Any] = {
    "id": JOB_ID,
    "object": "job",
    "model": "sana-demo",
    "status": "succeeded",
    "stage": None,
    "attempt": 1,
    "priority": "standard",
    "deterministic": False,
    "cancel_requested": False,
    "created_at": "2026-01-31T12:00:00.000Z",
    "deadline_at": None,
    "started_at": "2026-01-31T12:00:00.006Z",
    "finished_at": "2026-01-31T12:00:01.250Z",
    "queue": None,
    "progress": {"step": 20, "total_steps": 20, "percent": 100.0, "eta_seconds": None},
    "input": {
        "prompt": "a red circle on a blue background",
        "negative_prompt": "",
        "width": 256,
        "height": 256,
        "num_inference_steps": 20,
        "guidance_scale": 4.5,
        "num_images": 1,
        "seed": 7,
        "sampler": "dpmpp",
        "output_format": "png",
        "output_quality": 90,
    },
    "outputs": [
        {
            "index": 0,
            "url": f"/v1/jobs/{JOB_ID}/outputs/0",
            "content_type": "image/png",
            "width": 256,
            "height": 256,
            "bytes": 31415,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "seed": 7,
            "codec": None,
            "num_frames": None,
            "fps": None,
            "duration_seconds": None,
            "variants": ["thumbnail"],
        }
    ],
    "error": None,
    "usage": {"gpu_seconds": 1.1, "steps": 20, "resumed_steps": 0},
    "links": {
        "self": f"/v1/jobs/{JOB_ID}",
        "events": f"/v1/jobs/{JOB_ID}/events",
        "cancel": f"/v1/jobs/{JOB_ID}/cancel",
        "outputs": [f"/v1/jobs/{JOB_ID}/outputs/0"],
    },
    "metadata": {"order": "17"},
}

FILE_ID = "file_7c9e6679f7434c1e9d1e0c7f5a1b2c3d"

FILE: dict[str, Any] = {
    "id": FILE_ID,
    "object": "file",
    "kind": "video",
    "content_type": "video/mp4",
    "bytes": 27182,
    "sha256": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
    "filename": "walk.mp4",
    "purpose": None,
    "width": 832,
    "height": 480,
    "num_frames": 81,
    "fps": 16.0,
    "duration_seconds": 5.0625,
    "has_alpha": False,
    "rotation": 0,
    "created_at": "2026-01-31T12:00:00.000Z",
    "expires_at": "2026-02-01T12:00:00.000Z",
    "links": {"self": f"/v1/files/{FILE_ID}", "content": f"/v1/files/{FILE_ID}/content"},
}

EVENTS = """\
retry: 1000

event: job.queued
data: {"type":"job.queued","job_id":"job_0f8f…","status":"queued","stage":null,"attempt":0}
id: 1769860800000-0

event: job.progress
data: {"type":"job.progress","job_id":"job_0f8f…","progress":{"step":3,"total_steps":20}}
id: 1769860800400-0

: keepalive
"""
