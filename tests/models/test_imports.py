"""What importing each part of the models package costs: checked in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def modules_after(statement: str) -> set[str]:
    """Top-level modules present in a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["models.catalogue", "models.loading", "models.errors", "models.samplers"]
)
def test_describing_models_needs_no_tensor_library(module: str) -> None:
    present = modules_after(f"import {module}")
    assert "models" in present
    assert not present & {"torch", "numpy", "safetensors", "transformers", "diffusers"}


def test_discovering_a_model_needs_no_tensor_library(tiny_checkpoint: Path) -> None:
    present = modules_after(
        f"from models.catalogue import discover; discover([{str(tiny_checkpoint)!r}])"
    )
    assert not present & {"torch", "numpy", "safetensors", "transformers", "diffusers"}


def test_the_pipeline_module_waits_for_the_text_libraries() -> None:
    present = modules_after("import models.sana.pipeline")
    assert "torch" in present
    assert not present & {"transformers", "tokenizers", "diffusers", "huggingface_hub"}


def test_serving_never_imports_the_references(tiny_checkpoint: Path) -> None:
    present = modules_after(
        "import torch\n"
        "from models.catalogue import describe\n"
        "from models.loading import load\n"
        "from pathlib import Path\n"
        f"spec = describe(Path({str(tiny_checkpoint)!r}))\n"
        "load(spec, device=torch.device('cpu'), dtype=torch.float32)"
    )
    assert "tokenizers" in present
    assert not present & {"transformers", "diffusers"}


def test_loading_weights_needs_no_symbolic_shapes(tiny_checkpoint: Path) -> None:
    present = modules_after(
        "import torch\n"
        "from models.catalogue import describe\n"
        "from models.sana.pipeline import SanaPipeline\n"
        "from pathlib import Path\n"
        f"spec = describe(Path({str(tiny_checkpoint)!r}))\n"
        "SanaPipeline.load(spec, device='cpu', dtype=torch.float32)"
    )
    assert "tokenizers" in present
    assert not present & {"sympy", "transformers", "diffusers"}
