"""What the forkserver of the chaos suite imports, so that a process is up in milliseconds."""

# ruff: noqa: F401
import torch

import denoised.cli
import denoised.logs
import jobs.keeper
import models.fake.pipeline
import server.app
import server.runner
import tests.chaos.run
import workers.process
