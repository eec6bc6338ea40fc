"""Settings shared by every process: environment variables `DENOISED_*`, overridden by CLI flags.

Read once at the front door and handed down; no other module reads the environment. Durations are
seconds, sizes bytes.
"""

from __future__ import annotations

import ipaddress
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def default_data_dir() -> Path:
    """Where a single machine keeps its queue and results unless told otherwise."""
    return Path.home() / ".local" / "share" / "denoised"


class Settings(BaseSettings):
    """Everything a deployment can choose. Defaults suit one machine and one person."""

    model_config = SettingsConfigDict(env_prefix="DENOISED_", frozen=True)

    redis_url: str | None = Field(
        default=None,
        pattern=r"^(redis|rediss|unix)://",
        description="None starts an embedded Redis.",
    )
    data_dir: Path = Field(default_factory=default_data_dir)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    require_keys: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Whether requests need an API key. auto: not on a loopback address before the "
        "first key is made.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    models: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("sana-demo", "wan-vace-demo"),
        min_length=1,
        description="Bundled ids, checkpoint folders or GGUF files, comma-separated in the "
        "environment.",
    )
    workers: int = Field(default=1, ge=1, le=64, description="Worker processes on this machine.")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_batch_images: int = Field(default=16, ge=1, le=256, description="Images in one step.")
    model_memory_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Device memory for models; those that do not fit are loaded when jobs wait for "
        "them, in place of idle ones. None: eight tenths of what is free at the start.",
    )
    model_switch_seconds: float = Field(
        default=30.0,
        gt=0,
        description="A busy worker loads another model for jobs that have waited so long, and no "
        "sooner than so long after the last time.",
    )
    load_timeout_seconds: float = Field(
        default=1800.0, gt=0, description="A worker that loads a model for longer exits."
    )
    waiting_state_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Device memory for jobs that wait between two steps; the state of more rests "
        "in host memory. None: a tenth of the device's.",
    )
    preview_seconds: float = Field(default=0.5, gt=0, description="Least time between previews.")

    lease_seconds: float = Field(default=6.0, gt=0)
    heartbeat_seconds: float = Field(default=1.5, gt=0)
    reap_seconds: float = Field(default=0.5, gt=0)
    max_attempts: int = Field(default=3, ge=1, le=100)
    step_timeout_seconds: float = Field(
        default=300.0, gt=0, description="A worker without a finished step for this long exits."
    )
    checkpoint_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Between two checkpoints of a job, if it would still run for longer than this.",
    )
    drain_seconds: float = Field(default=20.0, ge=0, description="Grace for a job on SIGTERM.")

    max_queued_jobs: int = Field(default=10_000, ge=1, description="More are answered 503.")
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    max_data_url_bytes: int = Field(
        default=16 << 20, ge=1, description="Files inside one request, together, decoded."
    )
    max_file_bytes: int = Field(default=256 << 20, ge=1024, description="Of one upload.")
    max_file_pixels: int = Field(
        default=50_000_000, ge=1, le=1 << 26, description="Of one picture or frame."
    )
    max_file_frames: int = Field(default=1000, ge=1, description="Of one clip.")
    max_file_total_pixels: int = Field(
        default=1_000_000_000, ge=1, description="Of all frames of one clip together."
    )
    max_file_duration_seconds: float = Field(default=600.0, gt=0, description="Of one clip.")
    file_check_seconds: float = Field(
        default=30.0, gt=0, description="Processor time that decoding an upload may take."
    )
    min_free_disk_bytes: int = Field(
        default=1 << 30,
        ge=0,
        description="While less is free, files are answered 503: results and checkpoints need it.",
    )
    file_ttl_seconds: int = Field(default=86_400, ge=1, description="Uploads; jobs keep theirs.")
    result_ttl_seconds: int = Field(default=86_400, ge=1)
    event_ttl_seconds: int = Field(default=600, ge=1, description="Event log, after the end.")
    idempotency_ttl_seconds: int = Field(default=86_400, ge=1)

    @field_validator("models", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("heartbeat_seconds")
    @classmethod
    def _beats_twice_in_a_lease(cls, value: float, info: ValidationInfo) -> float:
        lease = info.data.get("lease_seconds", math.inf)
        if value > lease / 2:
            raise ValueError(
                f"must be at most half of lease_seconds ({lease:g}), or living workers lose jobs"
            )
        return value

    @property
    def is_local(self) -> bool:
        """Whether only this machine itself can reach `host`."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def blob_dir(self) -> Path:
        """Folder of the file blob store."""
        return self.data_dir / "blobs"

    @property
    def redis_dir(self) -> Path:
        """Folder of the embedded Redis: append-only file, socket and lock."""
        return self.data_dir / "redis"
