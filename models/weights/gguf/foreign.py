"""What a file is that was given as GGUF and is not: told from its first bytes, for one clear word.

People hand over the wrong download: the safetensors file beside it, a web page that says the file
needs a login, a Git LFS pointer, an archive. Naming it saves them a search.
"""

from __future__ import annotations

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"lmgg", "a GGML file, a predecessor of GGUF"),
    (b"fmgg", "a GGMF file, a predecessor of GGUF"),
    (b"tjgg", "a GGJT file, a predecessor of GGUF"),
    (b"algg", "a GGLA adapter file, not a model"),
    (b"PK\x03\x04", "a zip archive, as PyTorch checkpoints (.pth, .pt) are"),
    (b"\x80\x02", "a Python pickle, as old PyTorch checkpoints (.pth) are"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not downloaded"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89HDF", "an HDF5 file"),
)
_SAFETENSORS_LENGTH = 8


def describe_foreign(start: bytes) -> str:
    """What a file that begins with `start` (64 bytes or all of it) seems to be.

    For a file of unknown kind the first four bytes are quoted.
    """
    if not start:
        return "an empty file"
    if not start.strip(b"\0"):
        return "zero bytes, as an unfinished download leaves them"
    for signature, description in _SIGNATURES:
        if start.startswith(signature):
            return description
    if start[_SAFETENSORS_LENGTH : _SAFETENSORS_LENGTH + 1] == b"{":
        return "a safetensors file"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page: the download gave an HTML or XML answer instead of the file"
    if text.startswith((b"{", b"[")):
        return "a JSON document"
    return f"an unknown kind of file, beginning with {start[:4]!r}"
