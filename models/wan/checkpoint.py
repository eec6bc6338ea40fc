"""What a folder with a Wan-VACE model says about itself, without its weights.

Two layouts come in. A diffusers folder has `model_index.json` and one folder for each component.
A plain folder holds files as they are shared: a GGUF or safetensors transformer in any naming, in
one file or in shards, the autoencoder, a UMT5 encoder and its `tokenizer.json`. A
`WanVaceCheckpoint` goes out, with the path of every component, or an error that says what is
missing or unsupported. Imports no tensor library: the catalogue describes a model from this, the
pipeline loads from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import CheckpointError, UnsupportedCheckpoint
from models.wan.gguf_identify import Kind, require_wan_vace
from models.wan.shared_files import kinds_in, only_part, only_transformer
from models.wan.transformer_config import WanVaceConfig, infer_config
from models.wan.transformer_names import to_original
from models.weights.gguf.header import open_header
from models.weights.json_file import read_json_object
from models.weights.safetensors_header import read_shapes
from models.weights.shards import shard_files

PIPELINE_CLASS = "WanVACEPipeline"

# In a diffusers folder, beside shared files, and in the original release.
_TOKENIZER_PLACES = ("tokenizer", ".", "google/umt5-xxl")

# The official commands for VACE shift this far; a diffusers folder says its own.
_OFFICIAL_SHIFT = 16.0

_SAMPLERS = {
    "UniPCMultistepScheduler": "unipc",
    "DPMSolverMultistepScheduler": "dpm-solver++",
    "FlowMatchEulerDiscreteScheduler": "flow-euler",
}
# Options that change the schedule or the solver: the value this code computes, which is also the
# default where a configuration does not mention the option.
_SCHEDULE_OPTIONS: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_SOLVER_OPTIONS: Mapping[str, Any] = {
    **_SCHEDULE_OPTIONS,
    "solver_order": 2,
    "thresholding": False,
    "lower_order_final": True,
    "final_sigmas_type": "zero",
}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "unipc": {
        **_SOLVER_OPTIONS,
        "solver_type": "bh2",
        "predict_x0": True,
        "disable_corrector": [],
        "solver_p": None,
    },
    "dpm-solver++": {
        **_SOLVER_OPTIONS,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "euler_at_final": False,
        "use_lu_lambdas": False,
    },
    "flow-euler": {
        **_SCHEDULE_OPTIONS,
        "invert_sigmas": False,
        "shift_terminal": None,
        "stochastic_sampling": False,
    },
}
# Those that default to another kind of model, so that they must be said.
_FLOW_OPTIONS: Mapping[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


@dataclass(frozen=True)
class WanVaceCheckpoint:
    """A model's components, its transformer's configuration and its sampling defaults.

    `transformer` is a GGUF or safetensors file or a folder; `autoencoder` and `text_encoder` are
    files or folders; a file may be the first of several shards. `tokenizer` is a `tokenizer.json`.
    `sampler` is a name of `models.samplers.SAMPLERS`; `shift` the flow shift of its sigmas, greater
    than 0.
    """

    folder: Path
    transformer: Path
    config: WanVaceConfig
    autoencoder: Path
    text_encoder: Path
    tokenizer: Path
    sampler: str
    shift: float

    @classmethod
    def read(cls, source: Path) -> WanVaceCheckpoint:
        """Find the components at `source` and read what configures them.

        `source` is a folder, or a GGUF transformer whose folder has the other components. Raises
        CheckpointError when a component is missing or broken, UnsupportedCheckpoint when it is of a
        kind that is not implemented.
        """
        folder = source if source.is_dir() else source.parent
        index = folder / "model_index.json"
        if index.is_file():
            found = read_json_object(index).get("_class_name")
            if found != PIPELINE_CLASS:
                raise UnsupportedCheckpoint(
                    f"{index}: pipeline is {found!r}, supported: {PIPELINE_CLASS!r}"
                )
        kinds = kinds_in(folder)
        transformer = source
        if source.is_dir():
            inner = folder / "transformer"
            has_config = (inner / "config.json").is_file()
            transformer = inner if has_config else only_transformer(folder, kinds)
        scheduler = folder / "scheduler" / "scheduler_config.json"
        sampler, shift = _read_scheduler(scheduler) if scheduler.exists() else _official()
        return cls(
            folder=folder,
            transformer=transformer,
            config=_read_config(folder, transformer),
            autoencoder=only_part(folder, kinds, Kind.AUTOENCODER, "vae", "autoencoder"),
            text_encoder=only_part(
                folder, kinds, Kind.TEXT_ENCODER, "text_encoder", "text encoder"
            ),
            tokenizer=_tokenizer(folder),
            sampler=sampler,
            shift=shift,
        )

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files and folders that hold weights, every shard of them."""
        parts = (self.transformer, self.autoencoder, self.text_encoder)
        return tuple(file for part in parts for file in shard_files(part))

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Whether `folder` looks like it holds such a model, so that `read` may say what lacks."""
        index = folder / "model_index.json"
        if index.is_file():
            return read_json_object(index).get("_class_name") == PIPELINE_CLASS
        return any(path.suffix in (".gguf", ".safetensors") for path in folder.iterdir())


def _tokenizer(folder: Path) -> Path:
    candidates = tuple(folder / place / "tokenizer.json" for place in _TOKENIZER_PLACES)
    for path in candidates:
        if path.is_file():
            return path
    places = ", ".join(str(path.relative_to(folder)) for path in candidates)
    raise CheckpointError(f"{folder}: expected one of {places}, found: none")


def _read_config(folder: Path, transformer: Path) -> WanVaceConfig:
    """The configuration, from the folder's `config.json` or else from the shapes of the tensors.

    The `config.json` of a diffusers folder also holds for the GGUF files beside it, since a few
    things about a model are told by no shape.
    """
    path = folder / "transformer" / "config.json"
    if path.is_file():
        try:
            return WanVaceConfig.from_json(read_json_object(path))
        except UnsupportedCheckpoint as error:
            raise UnsupportedCheckpoint(f"{path}: {error}") from error
    if transformer.suffix == ".gguf":
        header = open_header(transformer)
        require_wan_vace(transformer, header)
        shapes = {info.name: info.shape for info in header.tensors}
    else:
        files = shard_files(transformer)
        shapes = {name: shape for file in files for name, shape in read_shapes(file).items()}
    try:
        return infer_config({to_original(name): shape for name, shape in shapes.items()})
    except CheckpointError as error:
        raise type(error)(f"{transformer}: {error}") from error


def _official() -> tuple[str, float]:
    return "unipc", _OFFICIAL_SHIFT


def _read_scheduler(path: Path) -> tuple[str, float]:
    config = read_json_object(path)
    found = config.get("_class_name")
    if found not in _SAMPLERS:
        raise UnsupportedCheckpoint(
            f"{path}: scheduler is {found!r}, supported: {' or '.join(_SAMPLERS)}"
        )
    sampler = _SAMPLERS[found]
    shift_key = "shift" if sampler == "flow-euler" else "flow_shift"
    options = {key: (config.get(key, value), value) for key, value in _OPTIONS[sampler].items()}
    if sampler != "flow-euler":
        options |= {key: (config.get(key), value) for key, value in _FLOW_OPTIONS.items()}
    for key, (value, supported) in options.items():
        if value != supported:
            raise UnsupportedCheckpoint(f"{path}: {key} is {value!r}, supported: {supported!r}")
    shift = config.get(shift_key, 1.0)
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 < shift < 1e4:
        raise CheckpointError(f"{path}: {shift_key} is {shift!r}, expected a number in 0..10000")
    return sampler, float(shift)
