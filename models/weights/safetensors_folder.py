"""One component folder of a diffusers checkpoint, mapped straight into a module.

A folder holds one `<stem>.safetensors`, or shards named by a `<stem>.safetensors.index.json`, each
perhaps in several variants (`<stem>.fp16.safetensors`). The module arrives on the meta device, so
that no weight is ever allocated twice: on a CPU the parameters become views of the mapped file
unless a cast is asked for, elsewhere each tensor is copied once. Files are untrusted: the header is
checked against the size of the file before a tensor is touched, and the set of names and every
shape must be exactly what the module declares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models.errors import CheckpointError, UnsupportedCheckpoint
from models.weights.json_file import read_json_object

STEMS = ("diffusion_pytorch_model", "model")
"""File stems of a component's weights, as diffusers and transformers write them."""

_NAMED_IN_ERRORS = 3


def load_module(
    module: nn.Module,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    variant: str | None = None,
    left_out: tuple[str, ...] = (),
) -> None:
    """Fill `module` (built on the meta device) with the weights of `folder`, frozen, in place.

    Floating-point tensors are cast to `dtype`; others keep theirs. `variant` picks one of several
    copies of the weights; see `weight_files`. Parameters whose names begin with one of `left_out`
    are checked like the others, but stay on the meta device. Raises CheckpointError naming the file
    and, where one is at fault, the tensor: missing, unexpected, duplicate, of another shape or kind
    of number, or unreadable.
    """
    files = weight_files(folder, variant)
    found: dict[str, Tensor] = {}
    origin: dict[str, Path] = {}
    for path in files:
        for name, tensor in read_tensors(path):
            if name in found:
                raise CheckpointError(
                    f"{path}: tensor {name!r} is stored twice, also in {origin[name].name}"
                )
            origin[name] = path
            found[name] = tensor
    fill_module(
        module,
        found,
        where=files[0] if len(files) == 1 else folder,
        device=device,
        dtype=dtype,
        left_out=left_out,
        origin=origin,
    )


def fill_module(
    module: nn.Module,
    found: Mapping[str, Tensor],
    *,
    where: Path,
    device: torch.device,
    dtype: torch.dtype,
    left_out: tuple[str, ...] = (),
    origin: Mapping[str, Path] | None = None,
) -> None:
    """Fill `module` (built on the meta device) with the tensors `found`, frozen, in place.

    `where` names the checkpoint in errors, `origin` the file of each tensor where there are
    several. Otherwise as `load_module`.
    """
    expected = module.state_dict()
    for name, tensor in found.items():
        path = where if origin is None else origin[name]
        if name in expected and tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {_shape(tensor)}, "
                f"the configuration asks for {_shape(expected[name])}"
            )
        if name in expected and not _same_kind(tensor.dtype, expected[name].dtype):
            raise CheckpointError(
                f"{path}: tensor {name!r} holds {tensor.dtype}, "
                f"which is no form of {expected[name].dtype}"
            )
    if missing := [name for name in expected if name not in found]:
        raise CheckpointError(f"{where}: lacks {_listed(missing)} of the architecture")
    if unexpected := [name for name in found if name not in expected]:
        raise CheckpointError(f"{where}: holds {_listed(unexpected)} unknown to the architecture")
    placed = {
        name: _placed(tensor, device, dtype)
        for name, tensor in found.items()
        if not name.startswith(left_out)
    }
    module.load_state_dict(placed, strict=not left_out, assign=True)
    module.requires_grad_(False).eval()


def weight_files(folder: Path, variant: str | None = None) -> tuple[Path, ...]:
    """The safetensors files that hold the component in `folder`, shards in name order.

    A `variant` that is asked for must be there; without one the plain files are taken, and when
    there are none but exactly one variant, that one. Files of two variants are never mixed.
    Raises CheckpointError when the folder, the choice or a shard of it is missing.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    offered = _offered_variants(folder)
    if variant is None and None not in offered and len(offered) == 1:
        (variant,) = offered
    if variant not in offered:
        wanted = "plain weights" if variant is None else f"weights of variant {variant!r}"
        there = ", ".join(sorted(name or "plain" for name in offered)) or "none"
        raise CheckpointError(f"{folder}: no {wanted} in safetensors form (there: {there})")
    chosen = offered[variant]
    return _shards(chosen) if chosen.suffix == ".json" else (chosen,)


def offers_weights(folder: Path) -> bool:
    """Whether `weight_files` finds anything in `folder` to choose from."""
    return bool(_offered_variants(folder))


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and mapped tensor of everything in one file.

    Raises CheckpointError naming the file when it is missing, damaged or truncated; all tensors are
    checked to lie inside the file before the first is given out. Raises UnsupportedCheckpoint for
    4-bit floats.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            names = handle.keys()
            for name in names:
                tensor = handle.get_tensor(name)
                # Two numbers in a byte, which torch stores and cannot compute with.
                if tensor.dtype == torch.float4_e2m1fn_x2:
                    raise UnsupportedCheckpoint(
                        f"{path}: tensor {name!r} holds 4-bit floats, expected 8 bits or more"
                    )
                yield name, tensor
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged or truncated safetensors file: {reason}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _offered_variants(folder: Path) -> dict[str | None, Path]:
    """Variant name (None: plain) to its single file or shard index."""
    offered: dict[str | None, Path] = {}
    for stem in STEMS:
        for path in sorted(folder.glob(f"{stem}.safetensors.index*.json")):
            middle = path.name[len(stem) + len(".safetensors.index") : -len(".json")]
            offered.setdefault(middle[1:] or None, path)
        for path in sorted(folder.glob(f"{stem}*.safetensors")):
            middle = path.name[len(stem) : -len(".safetensors")]
            if (middle == "" or middle.startswith(".")) and "-of-" not in middle:
                offered[middle[1:] or None] = path
    return offered


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(f"{index}: has no 'weight_map' naming the shards")
    names: set[str] = set()
    for tensor, name in weight_map.items():
        if not _is_plain_file_name(name):
            raise CheckpointError(f"{index}: entry {tensor!r} points outside the folder: {name!r}")
        names.add(name)
    for name in sorted(names):
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent / name}: shard named by {index.name} is missing")
    return tuple(index.parent / name for name in sorted(names))


def _is_plain_file_name(name: Any) -> bool:
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and "/" not in name
        and "\\" not in name
        and "\0" not in name
    )


def _same_kind(found: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether numbers can be cast without a meaning being lost: whole numbers may be quantised."""
    return found.is_floating_point == wanted.is_floating_point and not found.is_complex


def _placed(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    target = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=device, dtype=target)


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED_IN_ERRORS])
    more = f" and {len(names) - _NAMED_IN_ERRORS} more" if len(names) > _NAMED_IN_ERRORS else ""
    noun = "tensor" if len(names) == 1 else "tensors"
    return f"{len(names)} {noun} ({shown}{more})"
