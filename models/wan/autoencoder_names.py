"""Names of an autoencoder's tensors: from the original release's to those that the code uses.

The original numbers the layers of encoder and decoder through, residual blocks and steps between
levels alike, and those inside a residual block by their place in a sequence. Files as they are
shared come in either form, some with a prefix before every name; diffusers' names pass through
unchanged.
"""

from __future__ import annotations

import re

PREFIX = "model."

_ENDS = {
    "encoder.conv1.": "encoder.conv_in.",
    "decoder.conv1.": "decoder.conv_in.",
    "conv1.": "quant_conv.",
    "conv2.": "post_quant_conv.",
    "encoder.head.0.": "encoder.norm_out.",
    "encoder.head.2.": "encoder.conv_out.",
    "decoder.head.0.": "decoder.norm_out.",
    "decoder.head.2.": "decoder.conv_out.",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_RESIDUAL = {
    "residual.0.": "norm1.",
    "residual.2.": "conv1.",
    "residual.3.": "norm2.",
    "residual.6.": "conv2.",
    "shortcut.": "conv_shortcut.",
}
_RESAMPLE = re.compile(r"encoder\.(?:downsamples|down_blocks)\.(\d+)\.resample\.")
_LAYER = re.compile(r"(encoder\.downsamples|decoder\.upsamples|(?:en|de)coder\.middle)\.(\d+)\.")


def to_diffusers(name: str, num_res_blocks: int) -> str:
    """The name that the code uses for the tensor called `name` in either form.

    `num_res_blocks`, of each level of the encoder, tells where a level of the decoder ends.
    """
    name = name.removeprefix(PREFIX)
    for original, ours in _ENDS.items():
        if name.startswith(original):
            return ours + name.removeprefix(original)
    match = _LAYER.match(name)
    if match is None:
        return name
    kind, index, rest = match[1], match[2], name[match.end() :]
    for original, ours in _RESIDUAL.items():
        if rest.startswith(original):
            rest = ours + rest.removeprefix(original)
            break
    if kind.endswith("middle"):
        return f"{kind.removesuffix('middle')}mid_block.{_MIDDLE.get(index, index)}.{rest}"
    if kind == "encoder.downsamples":
        return f"encoder.down_blocks.{index}.{rest}"
    # A level of the decoder: one residual block more than the encoder's, then the step.
    level, place = divmod(int(index), num_res_blocks + 2)
    layer = "upsamplers.0" if place == num_res_blocks + 1 else f"resnets.{place}"
    return f"decoder.up_blocks.{level}.{layer}.{rest}"


def count_res_blocks(names: list[str]) -> int:
    """Residual blocks of a level, told from the names of the encoder's tensors in either form.

    Its first level ends with the first layer that has a `resample`. 2, as in the release, where no
    name tells.
    """
    found = [
        int(match[1]) for name in names if (match := _RESAMPLE.match(name.removeprefix(PREFIX)))
    ]
    return min(found, default=2)
