"""The mixtures of number types that GGUF files are known by, such as "Q4_K_M".

Which tensor gets what in a mixture is a matter of the model's family.
"""

from __future__ import annotations

from enum import IntEnum


class FileType(IntEnum):
    """A mixture; the value is what `general.file_type` says of it in the file."""

    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q8_0 = 7
    Q5_0 = 8
    Q5_1 = 9
    Q2_K = 10
    Q3_K_S = 11
    Q3_K_M = 12
    Q3_K_L = 13
    Q4_K_S = 14
    Q4_K_M = 15
    Q5_K_S = 16
    Q5_K_M = 17
    Q6_K = 18
    BF16 = 32
