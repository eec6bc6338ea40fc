"""From model specs to resident models: what is loaded, what would be, and why the rest cannot.

At the start a worker loads its models in turn while they fit the memory budget; the others stay
cold until `workers.model_switching` makes them resident in place of idle ones. One damaged
checkpoint must not take the sound ones down with it, so a failure to load becomes one line that
names file and tensor, kept for `/v1/models` and the log, and the worker goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import structlog

from config.model_spec import ModelSpec
from jobs.types import ModelLoad
from models import loading
from models.loading import weights_of
from models.pipeline import Pipeline
from workers import metrics
from workers.device import Device, is_out_of_memory
from workers.load_speeds import LoadSpeeds
from workers.model_choice import Warm, models_to_evict
from workers.recipe import Recipes, checkpoint_digest

log = structlog.get_logger(__name__)

MODEL_SHARE = 0.8
"""Of the memory free at the start; the rest is for activations and the state of jobs."""


def _untold(_model: str, _load: ModelLoad) -> AbstractContextManager[None]:
    return nullcontext()


class Residents:
    """What a worker serves, by model id, and one line for each model that it cannot.

    `pipelines` are those resident now, `cold` the specs that would be loaded for a job; `recipes`
    of a model outlive its eviction. `digests` is the file that remembers the digests of weight
    files, `speeds` knows how fast earlier loads were, `load` makes a pipeline of a spec, `weigh`
    tells its bytes before it is loaded, each load runs inside `telling(model, load)`. The main
    thread changes all this, any thread may read it.
    """

    def __init__(
        self,
        device: Device,
        digests: Path,
        speeds: LoadSpeeds,
        *,
        budget_bytes: int | None = None,
        load: Callable[..., Pipeline] = loading.load,
        weigh: Callable[[ModelSpec], int] = loading.weight_bytes,
        telling: Callable[[str, ModelLoad], AbstractContextManager[None]] = _untold,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pipelines: dict[str, Pipeline] = {}
        self.recipes: dict[str, Recipes] = {}
        self.errors: dict[str, str] = {}
        self.cold: dict[str, ModelSpec] = {}
        self._device = device
        self._digests = digests
        self._speeds = speeds
        self._budget_bytes = budget_bytes
        self._load = load
        self._weigh = weigh
        self._telling = telling
        self._clock = clock
        self._specs: dict[str, ModelSpec] = {}
        self._bytes: dict[str, int] = {}
        self._measured: dict[str, int] = {}
        self._last_used: dict[str, float] = {}

    def load(self, specs: Sequence[ModelSpec]) -> None:
        """Load specs in turn while they fit, the first in any case; failures are only noted."""
        self._specs.update({spec.id: spec for spec in specs})
        for spec in specs:
            size = self._size_of(spec)
            if size is None:
                continue
            if self.pipelines and size > self._budget - self._resident_bytes:
                self.cold[spec.id] = spec
                log.info("model is loaded on demand", model=spec.id, bytes=size)
            else:
                self._load_and_tell(spec)

    def residency(self) -> dict[str, str]:
        """How the weights of each resident model rest in memory."""
        return {model: pipeline.residency for model, pipeline in dict(self.pipelines).items()}

    def measured_bytes(self) -> dict[str, int]:
        """Device memory that loading each resident model took; none on a CPU, which cannot tell."""
        return {m: size for m, size in dict(self._measured).items() if m in self.pipelines}

    def note_use(self, models: Iterable[str]) -> None:
        """These models have work in hand: now is when they were last used."""
        self._last_used.update(dict.fromkeys(models, self._clock()))

    def expected(self, model: str) -> ModelLoad:
        """What loading a model takes; no ETA before the first load on this kind of device."""
        size = self._bytes[model]
        return ModelLoad(size, self._speeds.seconds(size))

    def to_evict(self, model: str, seconds_left: Mapping[str, float]) -> tuple[str, ...]:
        """Which resident models make room for `model`; `seconds_left` of those with work."""
        warm = [
            Warm(name, self._bytes[name], self._last_used[name], seconds_left.get(name))
            for name in self.pipelines
        ]
        return models_to_evict(warm, needed=self._bytes[model], budget=self._budget)

    def switch(self, model: str, evicted: Iterable[str]) -> bool:
        """Load a cold model in place of `evicted` ones, which must have no work.

        False when it cannot be loaded. It is then no longer served, unless it was memory that was
        missing: then it stays cold, and counts as too large for anything to stay beside it.
        """
        for name in evicted:
            del self.pipelines[name]
            self.cold[name] = self._specs[name]
            log.info("model is evicted", model=name, bytes=self._bytes[name])
        self._device.release_memory()
        return self._load_and_tell(self.cold.pop(model))

    @property
    def _budget(self) -> int:
        if self._budget_bytes is None:
            self._budget_bytes = int(MODEL_SHARE * self._device.free_bytes())
        return self._budget_bytes

    @property
    def _resident_bytes(self) -> int:
        return sum(self._bytes[model] for model in self.pipelines)

    def _size_of(self, spec: ModelSpec) -> int | None:
        """Bytes of a model that is yet to be loaded; None, with the reason noted, when broken."""
        try:
            self._bytes[spec.id] = self._weigh(spec)
        except Exception as error:
            self._refuse(spec, error)
            return None
        return self._bytes[spec.id]

    def _load_and_tell(self, spec: ModelSpec) -> bool:
        with self._telling(spec.id, self.expected(spec.id)):
            return self._make_resident(spec)

    def _make_resident(self, spec: ModelSpec) -> bool:
        started = self._clock()
        before = self._device.memory_bytes().get("allocated")
        try:
            pipeline = self._load(
                spec, device=self._device.torch_device, dtype=self._device.torch_dtype
            )
            self._device.synchronize()
            digest = checkpoint_digest(_folder_of(spec), weights_of(spec), self._digests)
        except Exception as error:
            if self.pipelines and _is_for_want_of_memory(error):
                log.warning("no room for the model yet", model=spec.id, reason=str(error))
                self.cold[spec.id] = spec
                self._bytes[spec.id] = max(self._bytes[spec.id], self._budget)
            else:
                self._refuse(spec, error)
            return False
        seconds = self._clock() - started
        self._speeds.observe(self._bytes[spec.id], seconds)
        if before is not None:
            self._bytes[spec.id] = self._device.memory_bytes()["allocated"] - before
            self._measured[spec.id] = self._bytes[spec.id]
        self.recipes[spec.id] = Recipes(spec.id, digest, self._device, pipeline.residency)
        self.pipelines[spec.id] = pipeline
        self.note_use([spec.id])
        metrics.MODEL_LOAD_SECONDS.labels(spec.id).observe(seconds)
        log.info(
            "model is resident",
            model=spec.id,
            residency=pipeline.residency,
            bytes=self._bytes[spec.id],
            seconds=round(seconds, 2),
        )
        return True

    def _refuse(self, spec: ModelSpec, error: Exception) -> None:
        message = _one_line(error, _folder_of(spec))
        self.errors[spec.id] = message
        log.error("model cannot be served", model=spec.id, reason=message)


def _is_for_want_of_memory(error: Exception) -> bool:
    return is_out_of_memory(error) or isinstance(error.__cause__, MemoryError)


def _folder_of(spec: ModelSpec) -> Path:
    return spec.source.parent if spec.source.is_file() else spec.source


def _one_line(error: Exception, folder: Path) -> str:
    """The error without line breaks and without where on this machine the checkpoint lies."""
    text = " ".join(str(error).split()).replace(f"{folder}/", "") or "no message"
    return text if type(error).__module__ == "models.errors" else f"{type(error).__name__}: {text}"
