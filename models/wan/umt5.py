"""The resident UMT5 encoder of Wan: loaded strictly from any of its files, run on real tokens only.

Safetensors, `.pth` and GGUF files come in, under any of their naming forms; token ids become hidden
states. Quantised matrices stay as they are in a GGUF file. The embedding table, a fifth of the
model, of which a prompt needs a few rows, stays in the mapped file whatever its numbers are: rows
are read, and dequantised or cast, when they are looked up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models.errors import CheckpointError, UnsupportedCheckpoint
from models.wan.gguf_identify import Kind, identify
from models.wan.tensor_check import check_shapes
from models.wan.transformer_tensors import StoredTensor, gguf_tensors, stored_tensors
from models.wan.umt5_config import EMBEDDING, Umt5Config, expected_shapes, infer_config
from models.wan.umt5_layers import Umt5
from models.wan.umt5_names import UNUSED, to_transformers
from models.weights.gguf.dequantize import dequantize
from models.weights.gguf.file import GgufFile
from models.weights.gguf.packed_tensor import PackedTensor
from models.weights.json_file import read_json_object
from models.weights.packed.linear import PackedLinear
from models.weights.skeleton import skeleton

_HOST = torch.device("cpu")


class Umt5Encoder:
    """A resident encoder with its embedding table.

    `table` is the table's numbers [vocab_size, hidden_size] in any floating dtype, or its quantised
    blocks, in host memory.
    """

    def __init__(self, model: Umt5, table: Tensor | PackedTensor, *, dtype: torch.dtype) -> None:
        self._model = model
        self._table = table
        self.hidden_size = model.config.d_model
        self.vocab_size = model.config.vocab_size
        self.device = model.encoder.final_layer_norm.weight.device
        self.dtype = dtype

    @classmethod
    def load(
        cls,
        source: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        variant: str | None = None,
    ) -> Umt5Encoder:
        """The encoder at `source`: a GGUF, safetensors or `.pth` file, or a folder of safetensors.

        A folder may have a `config.json`; otherwise the tensors' shapes tell the configuration.
        `variant` chooses among the copies in a folder. Raises ValueError for a `dtype` other than
        float32 and bfloat16, CheckpointError and UnsupportedCheckpoint, one line that names the
        file and the tensors at fault.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"dtype is {dtype}, UMT5 runs in torch.float32 or torch.bfloat16")
        config = _read_config(source)
        if source.suffix == ".gguf":
            with GgufFile.open(source) as file:
                if (kind := identify(file.header).kind) is not Kind.TEXT_ENCODER:
                    raise UnsupportedCheckpoint(
                        f"{source}: the file holds {kind}, expected a UMT5 encoder"
                    )
                return cls._assemble(source, list(gguf_tensors(file)), config, device, dtype)
        stored = list(stored_tensors(source, variant, ignored=UNUSED))
        return cls._assemble(source, stored, config, device, dtype)

    @classmethod
    def _assemble(
        cls,
        source: Path,
        stored: Sequence[StoredTensor],
        config: Umt5Config | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Umt5Encoder:
        try:
            tensors = _by_name(stored)
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            config = config or infer_config(shapes)
            check_shapes(shapes, expected_shapes(config))
        except CheckpointError as error:
            raise type(error)(f"{source}: {error}") from error
        table = tensors.pop(EMBEDDING)
        with skeleton():
            model = Umt5(config)
        _fill(model, tensors, device, dtype)
        return cls(model, _resting(table, dtype), dtype=dtype)

    @torch.inference_mode()
    def hidden_states(self, token_ids: Sequence[int]) -> Tensor:
        """Last hidden states [len(token_ids), hidden_size] of at least one token.

        Equal, up to the rounding of matrix products, to what a padded batch with a mask gives for
        the tokens that are no padding. Raises IndexError for an id outside of the vocabulary.
        """
        rows = torch.tensor(token_ids, dtype=torch.long)
        if isinstance(self._table, PackedTensor):
            # Indexing copies the rows' blocks, aligned, out of the map.
            embeddings = dequantize(self._table.data[rows], self._table.type, dtype=self.dtype)
        else:
            embeddings = self._table[rows].to(self.dtype)
        out: Tensor = self._model(embeddings.to(self.device))
        return out


def _read_config(source: Path) -> Umt5Config | None:
    path = source / "config.json"
    if not path.is_file():
        return None
    try:
        return Umt5Config.from_json(read_json_object(path))
    except UnsupportedCheckpoint as error:
        raise UnsupportedCheckpoint(f"{path}: {error}") from error


def _by_name(stored: Sequence[StoredTensor]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for tensor in stored:
        if tensor.name.startswith(UNUSED):
            continue
        name = to_transformers(tensor.name)
        # Complete models write the one table under the names of all who use it.
        if name in tensors and name != EMBEDDING:
            raise CheckpointError(
                f"tensors {tensors[name].name!r} and {tensor.name!r} are both {name!r}"
            )
        tensors[name] = tensor
    return tensors


def _fill(
    model: nn.Module,
    tensors: Mapping[str, StoredTensor],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Put every tensor where it stays: norms in float32, quantised matrices in their blocks."""
    for name, tensor in tensors.items():
        path = name.removesuffix(".weight")
        layer = model.get_submodule(path)
        if isinstance(layer, nn.Linear) and (packed := tensor.packed(device)) is not None:
            model.set_submodule(path, PackedLinear(packed))
            continue
        resting = torch.float32 if len(tensor.shape) == 1 else dtype
        layer.weight = nn.Parameter(tensor.dense(resting, device), requires_grad=False)
    model.requires_grad_(False).eval()


def _resting(table: StoredTensor, dtype: torch.dtype) -> Tensor | PackedTensor:
    if (packed := table.packed(_HOST)) is not None:
        return packed
    return table.dense(table.plain_dtype or dtype, _HOST)
