"""What a Sana checkpoint folder in diffusers layout says about itself, without its weights.

`model_index.json` and the configurations of transformer, autoencoder and scheduler come in; a
`SanaCheckpoint` goes out, or an error that says what is unsupported. Imports no tensor library: the
catalogue describes a model from this, the pipeline loads from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import CheckpointError, UnsupportedCheckpoint
from models.sana.autoencoder_dc_config import AutoencoderDCConfig
from models.sana.transformer_config import SanaTransformerConfig
from models.weights.json_file import read_json_object

PIXELS_PER_LATENT = 32
"""Side of the square of pixels that one latent of Sana's autoencoder stands for."""

_PIPELINE_CLASS = "SanaPipeline"
_COMPONENT_CLASSES = {
    "transformer": ("SanaTransformer2DModel",),
    "vae": ("AutoencoderDC",),
    "text_encoder": ("Gemma2Model",),
    "scheduler": ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
}

# Options that change the schedule or the solver: the value this code computes, which is also the
# default where a configuration does not mention the option.
_DPM_SOLVER_OPTIONS: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "thresholding": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_dynamic_shifting": False,
}
_FLOW_EULER_OPTIONS: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": False,
    "invert_sigmas": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "stochastic_sampling": False,
}


@dataclass(frozen=True)
class SanaCheckpoint:
    """A checkpoint folder with the configurations of its networks and its sampling defaults.

    `sampler` is a name of `models.samplers.SAMPLERS`; `shift` is the flow shift of its sigmas,
    greater than 0.
    """

    folder: Path
    transformer: SanaTransformerConfig
    autoencoder: AutoencoderDCConfig
    sampler: str
    shift: float

    @classmethod
    def read(cls, folder: Path) -> SanaCheckpoint:
        """Read the configuration files of `folder`.

        Raises CheckpointError when one is missing or broken, UnsupportedCheckpoint when they
        describe something this code does not implement; both name the file.
        """
        index_path = folder / "model_index.json"
        index = read_json_object(index_path)
        _expect_class(index_path, "pipeline", index.get("_class_name"), (_PIPELINE_CLASS,))
        for component, supported in _COMPONENT_CLASSES.items():
            entry = index.get(component)
            found = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
            _expect_class(index_path, component, found, supported)

        transformer = _read_transformer(folder / "transformer" / "config.json")
        autoencoder = _read_autoencoder(folder / "vae" / "config.json", transformer.in_channels)
        sampler, shift = _read_scheduler(folder / "scheduler" / "scheduler_config.json")
        return cls(folder, transformer, autoencoder, sampler, shift)


def _read_transformer(path: Path) -> SanaTransformerConfig:
    try:
        config = SanaTransformerConfig.from_json(read_json_object(path))
    except UnsupportedCheckpoint as error:
        raise UnsupportedCheckpoint(f"{path}: {error}") from error
    _expect_option(path, "out_channels", config.out_channels, config.in_channels)
    return config


def _read_autoencoder(path: Path, latent_channels: int) -> AutoencoderDCConfig:
    config_json = read_json_object(path)
    try:
        config = AutoencoderDCConfig.from_dict(config_json)
    except (ValueError, TypeError) as error:
        raise UnsupportedCheckpoint(f"{path}: {error}") from error
    ratio = config.spatial_compression_ratio
    _expect_option(path, "pixels per latent", ratio, PIXELS_PER_LATENT)
    _expect_option(path, "latent_channels", config.latent_channels, latent_channels)
    return config


def _read_scheduler(path: Path) -> tuple[str, float]:
    config = read_json_object(path)
    class_name = config.get("_class_name")
    _expect_class(path, "scheduler", class_name, _COMPONENT_CLASSES["scheduler"])
    if class_name == "DPMSolverMultistepScheduler":
        sampler, shift_key, options = "dpm-solver++", "flow_shift", _DPM_SOLVER_OPTIONS
        # These two default to another kind of model, so they must be said.
        for key, wanted in (("prediction_type", "flow_prediction"), ("use_flow_sigmas", True)):
            _expect_option(path, key, config.get(key), wanted)
    else:
        sampler, shift_key, options = "flow-euler", "shift", _FLOW_EULER_OPTIONS
    for key, wanted in options.items():
        _expect_option(path, key, config.get(key, wanted), wanted)
    shift = config.get(shift_key, 1.0)
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 < shift < 1e4:
        raise CheckpointError(f"{path}: {shift_key} is {shift!r}, expected a number in 0..10000")
    return sampler, float(shift)


def _expect_class(path: Path, what: str, found: Any, supported: tuple[str, ...]) -> None:
    if found not in supported:
        names = " or ".join(supported)
        raise UnsupportedCheckpoint(f"{path}: {what} is {found!r}, supported: {names}")


def _expect_option(path: Path, key: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise UnsupportedCheckpoint(f"{path}: {key} is {found!r}, supported: {wanted!r}")
