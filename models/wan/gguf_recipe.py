"""Which type each tensor of a Wan transformer gets in a file of a given type.

The types people choose ("Q4_K_M") name a mixture, and programs expect the mixture they know from
the files in circulation. These are the rules of the tool those were made with: what is small or
touches every token stays plain, and the matrices whose error shows most get more bits. Sizes of
files made this way agree with the published ones. One rule is another, for rows that are no whole
number of blocks, which no published model has. Reference: tools/lcpp.patch of ComfyUI-GGUF.
"""

from __future__ import annotations

import math
import re

from models.weights.gguf.file_type import FileType
from models.weights.gguf.format import BLOCK, QuantType

_MAIN = {
    member: QuantType[member.name.removesuffix("_S").removesuffix("_M").removesuffix("_L")]
    for member in FileType
}
# The last matrix of the feed-forward, and the values of attention.
_FEED_FORWARD = {
    FileType.Q3_K_M: QuantType.Q4_K,
    FileType.Q3_K_L: QuantType.Q5_K,
    FileType.Q4_K_S: QuantType.Q5_K,
    FileType.Q4_K_M: QuantType.Q6_K,
    FileType.Q5_K_M: QuantType.Q6_K,
    FileType.Q4_0: QuantType.Q4_1,
    FileType.Q5_0: QuantType.Q5_1,
}
_VALUES = {
    FileType.Q2_K: QuantType.Q3_K,
    FileType.Q3_K_M: QuantType.Q4_K,
    FileType.Q3_K_L: QuantType.Q5_K,
    FileType.Q4_K_M: QuantType.Q6_K,
    FileType.Q5_K_M: QuantType.Q6_K,
}
# The values of so many leading blocks of the trunk get another type still.
_LEADING_VALUES = {
    FileType.Q3_K_M: (1, QuantType.Q5_K),
    FileType.Q4_K_S: (2, QuantType.Q5_K),
}
# What stands in where rows are no whole number of 256-element blocks, as llama.cpp has it. The tool
# for image models takes F16, at two to three times the size.
_FALLBACK = {
    QuantType.Q2_K: QuantType.Q5_0,
    QuantType.Q3_K: QuantType.Q5_0,
    QuantType.Q4_K: QuantType.Q5_0,
    QuantType.Q5_K: QuantType.Q5_1,
    QuantType.Q6_K: QuantType.Q8_0,
}

_SMALL = 1024
_KEPT = (
    "patch_embedding.",
    "text_embedding.",
    "time_embedding.",
    "time_projection.",
    "img_emb.",
    "head.",
)
_BLOCK_MATRIX = re.compile(
    r"(?P<stack>vace_blocks|blocks)\.(?P<index>\d+)\."
    r"(?:(?P<values>(?:self|cross)_attn\.v)|(?P<feed_forward>ffn\.2))\.weight"
)


def tensor_type(file_type: FileType, name: str, shape: tuple[int, ...]) -> QuantType:
    """The type of the tensor with this original name and shape in a file of type `file_type`.

    Everything but matrices of more than 1024 elements is F32: biases, norms, modulations and the
    convolutions' five-dimensional kernels. The matrices before and after the blocks are F16 (BF16
    in a BF16 file). Where the rows of another matrix are no whole number of blocks, Q2_K, Q3_K and
    Q4_K become Q5_0, Q5_K becomes Q5_1 and Q6_K becomes Q8_0; where that does not fit either, F16.
    """
    if len(shape) != 2 or math.prod(shape) <= _SMALL:
        return QuantType.F32
    plain = QuantType.BF16 if file_type is FileType.BF16 else QuantType.F16
    if any(part in name for part in _KEPT):
        return plain
    wanted = _wanted(file_type, name)
    for candidate in (wanted, _FALLBACK.get(wanted, plain)):
        if shape[1] % BLOCK[candidate][0] == 0:
            return candidate
    return plain


def _wanted(file_type: FileType, name: str) -> QuantType:
    main = _MAIN[file_type]
    match = _BLOCK_MATRIX.fullmatch(name)
    if match is None:
        return main
    if match["feed_forward"]:
        return _FEED_FORWARD.get(file_type, main)
    leading, more = _LEADING_VALUES.get(file_type, (0, main))
    if match["stack"] == "blocks" and int(match["index"]) < leading:
        return more
    return _VALUES.get(file_type, main)
