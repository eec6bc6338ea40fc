"""The numbers that the CPU benchmarks compute with: bfloat16, or float32 on a CPU without it.

Emulated bfloat16 would time the emulation. Both sides of a comparison use the same, and the figures
say which.
"""

from __future__ import annotations

import torch

from models.native_dtypes import fastest_dtype

DTYPE = fastest_dtype(torch.device("cpu"))
DTYPE_NAME = str(DTYPE).removeprefix("torch.")
