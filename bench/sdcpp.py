"""stable-diffusion.cpp as a contestant: its driver in a process of its own, one step a call.

The driver's source, `bench/sdcpp_step.cpp`, says how to build it. Latents, context, text and
timestep go to it in a file and the velocity comes back in one, so that results can be compared; in
between it waits without taking any time from the others.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from bench.wan_steps import Clip

_REPORT = re.compile(r"^done ([\d.e+-]+) ([\d.e+-]+)$", re.MULTILINE)


class SdcppStep:
    """A running driver with the model loaded; call it for one step, and use it as a context.

    `load_seconds` is what loading took, `cpu_seconds` the processor time up to the last step.
    """

    def __init__(self, driver: Path, model: Path, clip: Clip, threads: int) -> None:
        """Raises RuntimeError when the driver ends before the model is loaded."""
        self.cpu_seconds = 0.0
        self._shape = clip.latents.shape
        self._folder = tempfile.TemporaryDirectory()
        inputs, self._output = (Path(self._folder.name) / name for name in ("inputs", "output"))
        values = (clip.latents, clip.context, clip.padded_prompt, clip.timesteps)
        inputs.write_bytes(torch.cat([value.flatten() for value in values]).numpy())
        sizes = [str(size) for size in (*self._shape[2:], threads)]
        self._process = subprocess.Popen(
            [str(driver), str(model), str(inputs), str(self._output), *sizes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.load_seconds = self._answer()
        except RuntimeError:
            self.close()
            raise

    def __call__(self) -> Tensor:
        """One step: the velocity, shaped like the latents. Raises RuntimeError when it fails."""
        if self._process.stdin is None:
            raise RuntimeError("the driver was closed")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._answer()
        return torch.from_numpy(np.fromfile(self._output, np.float32)).view(self._shape)

    def _answer(self) -> float:
        """Wait for the driver; its seconds since it was started."""
        for line in self._process.stdout or ():
            # The library draws its progress in loading on the same pipe.
            if (found := _REPORT.search(line)) is not None:
                self.cpu_seconds = float(found[2])
                return float(found[1])
        raise RuntimeError(f"the driver ended with status {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the driver, which stops when nobody can ask it any more."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        self._process.wait()
        self._folder.cleanup()
