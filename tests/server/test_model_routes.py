"""/v1/models: capabilities, limits, schema, and who holds a model now."""

from __future__ import annotations

from typing import Any

import pytest
from http_harness import OTHER_SPEC, SPEC, Api, worker_info

from config.model_spec import ModelSpec
from jobs.worker_registry import announce
from server.model_views import model_view, residency


def test_a_model_shows_limits_defaults_and_the_schema_of_its_input(api: Api) -> None:
    model = api.client.get(f"/v1/models/{SPEC.id}").json()
    assert model["limits"]["width"] == {"minimum": 32, "maximum": 128, "multiple_of": 32}
    assert model["limits"]["prompt"] == {"max_chars": 1000}
    assert model["defaults"]["num_inference_steps"] == 4
    assert model["samplers"] == ["dpmpp", "euler"]
    schema = model["input_schema"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["prompt"]
    assert set(model["limits"]) <= set(schema["properties"])


def test_a_model_of_clips_shows_what_clips_may_be() -> None:
    spec = ModelSpec.model_validate(
        SPEC.model_dump()
        | {
            "family": "wan-vace",
            "task": "video",
            "num_images": {"default": 1, "minimum": 1, "maximum": 1},
            "video": {
                "num_frames": {"default": 9, "minimum": 1, "maximum": 17},
                "fps": {"default": 16.0, "minimum": 1.0, "maximum": 60.0},
                "flow_shift": {"default": 3.0, "minimum": 0.1, "maximum": 100.0},
                "conditioning_scale": {"default": 1.0, "minimum": 0.0, "maximum": 2.0},
                "num_conditioning_scales": 2,
                "max_reference_images": 3,
                "max_pixels": 50_000,
            },
        }
    )
    model = model_view(spec, [])
    assert model.task == "video"
    assert model.limits["num_frames"] == {
        "minimum": 1,
        "maximum": 17,
        "multiple_of": 1,
        "max_total_pixels": 50_000,
    }
    assert model.limits["fps"] == {"minimum": 1.0, "maximum": 60.0}
    assert model.limits["conditioning_scale"]["max_items"] == 2
    assert model.limits["reference_images"] == {"max_items": 3}
    assert (model.defaults["num_frames"], model.defaults["flow_shift"]) == (9, 3.0)
    assert set(model.limits) <= set(model.input_schema["properties"])
    assert set(model.defaults) <= set(model.input_schema["properties"])


def test_all_models_are_listed(api: Api) -> None:
    listed = api.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == [SPEC.id, OTHER_SPEC.id]
    assert listed[0] == api.client.get(f"/v1/models/{SPEC.id}").json()


def test_no_answer_tells_where_the_weights_lie(api: Api) -> None:
    assert "secret-folder" not in api.client.get("/v1/models").text


def test_an_unknown_model_is_not_found(api: Api) -> None:
    response = api.client.get("/v1/models/gpt")
    assert response.status_code == 404
    assert response.json()["code"] == "not_found"


def test_residency_comes_from_the_workers_announcements(api: Api, redis_client: Any) -> None:
    def state(model: str) -> dict[str, Any]:
        return api.client.get(f"/v1/models/{model}").json()["residency"]

    assert state(SPEC.id)["state"] == "unavailable"
    announce(
        redis_client,
        worker_info(
            residency={SPEC.id: "packed"},
            model_errors={OTHER_SPEC.id: "vae.safetensors is truncated"},
        ),
    )
    assert state(SPEC.id) == {
        "state": "resident",
        "mode": "packed",
        "memory_bytes": None,
        "workers": 1,
        "error": None,
    }
    assert state(OTHER_SPEC.id) == {
        "state": "unavailable",
        "mode": None,
        "memory_bytes": None,
        "workers": 0,
        "error": "vae.safetensors is truncated",
    }


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ([], "unavailable"),
        ([worker_info(state="starting", models=())], "loading"),
        ([worker_info(state="starting", models=(), model_errors={"m": "bad"})], "unavailable"),
        ([worker_info(models=("m",)), worker_info(model_errors={"m": "bad"})], "resident"),
        ([worker_info(models=("x",))], "unavailable"),
        ([worker_info(models=("x",), on_demand=("m",))], "on_demand"),
        ([worker_info(models=("x",), loading="m")], "loading"),
        ([worker_info(models=("m",)), worker_info(loading="m")], "resident"),
        ([worker_info(models=(), on_demand=("m",)), worker_info(models=("m",))], "resident"),
    ],
)
def test_residency_is_resident_if_any_holds_it_else_loading_if_any_may(
    workers: list[Any], expected: str
) -> None:
    assert residency("m", workers).state == expected
