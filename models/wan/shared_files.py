"""What the files of a folder are, in which a Wan-VACE model lies as its parts are shared.

A folder comes in; the kind of each file of weights, and the one file that is a certain part, go
out. The names of the tensors inside tell, so that whatever else lies there (LoRA, an image encoder,
a preview autoencoder) is passed over. Names of files count only where tensors cannot be asked: in
`.pth` files, which need a tensor library, and in damaged ones. Imports no tensor library.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.errors import CheckpointError
from models.wan.gguf_identify import Kind, identify, identify_names
from models.weights.gguf.header import open_header
from models.weights.safetensors_header import read_shapes
from models.weights.shards import first_shards, shard_files

SUFFIXES = (".gguf", ".safetensors", ".pth")

# Brings a map from latents to colours, see `models.latent_preview`, which loads the tensor library.
_PREVIEW_FILE = "preview.safetensors"


def kinds_in(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> dict[Path, Kind]:
    """What every file of weights in `folder` with one of `suffixes` holds, in name order.

    Shards of one checkpoint are told together, and named by the first that is there.
    """
    files = [
        path
        for path in folder.iterdir()
        if path.suffix in suffixes and path.name != _PREVIEW_FILE and path.is_file()
    ]
    return {path: _kind(path) for path in first_shards(files)}


def only_transformer(folder: Path, kinds: Mapping[Path, Kind]) -> Path:
    """The one transformer among the files of `folder`.

    Half a transformer, or one without VACE, is taken where there is no whole one, so that whoever
    loads it hears what it lacks. Raises CheckpointError listing the files unless there is one.
    """
    what = "transformer/config.json or one transformer file"
    whole = any(kind is Kind.WAN_VACE for kind in kinds.values())
    wanted = (Kind.WAN_VACE,) if whole else (Kind.WAN, Kind.VACE_MODULE)
    return _only(folder, kinds, wanted, what)


def only_part(folder: Path, kinds: Mapping[Path, Kind], kind: Kind, name: str, what: str) -> Path:
    """The folder `name` in `folder`, or else the one file of this kind, which errors call `what`.

    Raises CheckpointError listing the files unless there is one.
    """
    if (folder / name).is_dir():
        return folder / name
    return _only(
        folder, kinds, (kind,), f"a folder {name!r} or one {what} file beside the transformer"
    )


def _only(folder: Path, kinds: Mapping[Path, Kind], wanted: tuple[Kind, ...], what: str) -> Path:
    found = [path for path, kind in kinds.items() if kind in wanted]
    if len(found) == 1:
        return found[0]
    there = ", ".join(path.name for path in found)
    if not found:
        others = ", ".join(path.name for path in kinds)
        there = f"none (other files: {others})" if others else "none"
    raise CheckpointError(f"{folder}: expected {what}, found: {there}")


def _kind(path: Path) -> Kind:
    try:
        if path.suffix == ".gguf":
            kind = identify(open_header(path)).kind
            # Read from other files only.
            return Kind.OTHER if kind is Kind.AUTOENCODER else kind
        if path.suffix == ".safetensors":
            names = [name for file in shard_files(path) for name in read_shapes(file)]
            return identify_names(names).kind
    except CheckpointError:
        # Only who wants this very file should hear what is wrong with it.
        pass
    return _kind_by_name(path)


def _kind_by_name(path: Path) -> Kind:
    name = path.name.lower()
    if "t5" in name or "text_encoder" in name:
        return Kind.TEXT_ENCODER
    if path.suffix != ".gguf" and "vae" in name.replace("vace", ""):
        return Kind.AUTOENCODER
    return Kind.OTHER if path.suffix == ".pth" else Kind.WAN_VACE
