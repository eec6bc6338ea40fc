"""Feeds mutated GGUF files to the reader: `python -m bench.fuzz_gguf --cases 100000 --seed 0`.

Small valid files, written by the `gguf` package, are damaged: bits flipped, length fields set to
extremes, pieces cut, repeated, moved or taken from another file. Each case must end in a typed
error of one line that names the file, or in a header whose tensors all lie inside the file, alone;
what loads is also inspected and mapped, and the ends of every tensor are read. One case in twenty
is a damaged whole transformer, which goes all the way through `load_transformer`. The program stops
with a traceback at the first case that does anything else, takes a second, or, while it reads,
allocates more than twice the file and 64 KiB; otherwise it prints what was seen in one line.

Seconds are by the clock, which a busy machine stretches at random. A case is the same each time, so
one that took a second is run again and counted as repeated; it fails if it never takes less.
"""

from __future__ import annotations

import argparse
import random
import re
import struct
import tempfile
import time
import timeit
import tracemalloc
from collections import Counter
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from config.model_spec import Residency
from models.errors import CheckpointError
from models.wan.gguf_inspection import inspect_gguf
from models.wan.transformer import WanVaceTransformer
from models.wan.transformer_config import WanVaceConfig, expected_shapes
from models.wan.transformer_loading import load_transformer
from models.weights.gguf.file import GgufFile
from models.weights.gguf.format import QuantType
from models.weights.gguf.header import GgufHeader, read_header

WHERE = "case.gguf"
MOST_SECONDS = 1.0
REPEATS = 3
ALLOWED_BESIDES_TWICE_THE_FILE = 64 << 10
"""What the interpreter's objects and messages take, however small the file."""
MEASURE_MEMORY_EVERY = 20
LOAD_EVERY = 20
LONGEST_MESSAGE = 1000
RESIDENCIES: tuple[Residency, ...] = ("packed", "bf16")

# The narrowest transformer whose configuration shapes can tell.
_WHOLE = WanVaceConfig(
    num_heads=1, ffn_dim=32, num_layers=1, vace_layers=(0,), text_dim=32, freq_dim=32
)

_INTERESTING = (0, 1, 2, 3, 5, 8, 9, 31, 32, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
                2**61, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip


def valid_files(folder: Path) -> list[bytes]:
    """Sound files of 1 to 10 KB, of every kind the reader meets: the material for mutations."""
    rng = np.random.default_rng(0)
    quantised = [type_ for type_ in QuantType if type_ not in (QuantType.F32, QuantType.F16)]

    def wan(writer: gguf.GGUFWriter, prefix: str, blocks: tuple[str, ...]) -> None:
        for block in blocks:
            for part in ("q", "k", "v", "o"):
                name = f"{prefix}{block}.0.self_attn.{part}.weight"
                writer.add_tensor(name, rng.standard_normal((2, 8), np.float32))
            writer.add_tensor(f"{prefix}{block}.0.modulation", np.zeros((1, 6, 4), np.float32))

    def quants(writer: gguf.GGUFWriter) -> None:
        writer.add_float32("wan.eps", 1e-6)
        writer.add_bool("wan.flag", True)
        writer.add_array("comfy.gguf.orig_shape.blocks.0.self_attn.q.Q8_0", [2, 4, 8])
        for type_ in quantised:
            elements, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(type_)]
            rows = 64 // elements or 1
            data = rng.integers(0, 256, (rows, nbytes), np.uint8)
            name = f"blocks.0.self_attn.q.{type_.name}"
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType(type_))

    def tokenizer(writer: gguf.GGUFWriter) -> None:
        writer.add_token_list([f"token{i}" for i in range(150)])
        writer.add_token_scores([float(i) for i in range(150)])
        writer.add_token_types([1] * 150)
        writer.add_tensor("token_embd.weight", rng.standard_normal((4, 8), np.float32))
        writer.add_tensor("enc.blk.0.attn_q.weight", rng.standard_normal((8, 8), np.float32))

    def aligned(writer: gguf.GGUFWriter) -> None:
        writer.add_custom_alignment(128)
        writer.add_uint64("wan.large", 2**63)
        writer.add_int8("wan.small", -1)
        writer.add_tensor("patch_embedding.weight", np.zeros((4, 2, 1, 2, 2), np.float32))
        wan(writer, "model.diffusion_model.", ("blocks", "vace_blocks"))

    def many(writer: gguf.GGUFWriter) -> None:
        for number in range(80):
            writer.add_tensor(f"t{number}", np.zeros(8, np.float16))

    fills: dict[str, Callable[[gguf.GGUFWriter], None]] = {
        "wan": lambda writer: wan(writer, "", ("blocks", "vace_blocks")),
        "quants": quants,
        "t5encoder": tokenizer,
        "aligned": aligned,
        "many": many,
        "empty": lambda writer: None,
    }
    files = []
    for name, fill in fills.items():
        path = folder / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, name)
        fill(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        files.append(path.read_bytes())
    return files


def whole_transformer(folder: Path) -> bytes:
    """A file of 0.3 MB that loads: zeros under every name, matrices in Q4_0."""
    path = folder / "whole.gguf"
    writer = gguf.GGUFWriter(path, "wan")
    for name, shape in expected_shapes(_WHOLE).items():
        if len(shape) == 2:
            data = np.zeros((shape[0], shape[1] // 32 * 18), np.uint8)
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        else:
            writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def mutate(rng: random.Random, files: list[bytes]) -> bytes:
    """One damaged file: a few random mutations of one of `files`."""
    data = bytearray(rng.choice(files))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        rng.choice(_MUTATIONS)(rng, data, _place(rng, data), files)
    return bytes(data)


def check(data: bytes, folder: Path) -> GgufHeader | CheckpointError:
    """Read one case as the product does and hold the outcome against what is promised."""
    try:
        header = read_header(BytesIO(data), len(data), where=WHERE)
    except CheckpointError as error:
        _hold(error, WHERE)
        return error
    end = header.data_offset
    for info in sorted(header.tensors, key=lambda info: info.offset):
        assert end <= info.offset <= info.offset + info.nbytes <= len(data), info
        end = info.offset + info.nbytes
    path = folder / WHERE
    path.write_bytes(data)
    problem = inspect_gguf(path).problem or ""
    assert problem.isprintable(), problem
    assert len(problem) < LONGEST_MESSAGE, problem
    with GgufFile.open(path) as file:
        for info in header.tensors:
            view = file.raw(info.name)
            assert int(view[0]) == data[info.offset], info
            assert int(view[-1]) == data[info.offset + info.nbytes - 1], info
    return header


def check_loading(
    data: bytes, folder: Path, residency: Residency
) -> WanVaceTransformer | CheckpointError:
    """Load one case as a worker does: a typed error, or a transformer of numbers."""
    path = folder / WHERE
    path.write_bytes(data)
    try:
        loaded = load_transformer(path, device="cpu", dtype=torch.float32, residency=residency)
    except CheckpointError as error:
        _hold(error, str(path))
        return error
    for name, tensor in (*loaded.named_parameters(), *loaded.named_buffers()):
        assert not tensor.is_meta, name
    return loaded


def _hold(error: CheckpointError, where: str) -> None:
    message = str(error)
    assert message.startswith(f"{where}: "), message
    assert message.isprintable(), message
    assert len(message) < LONGEST_MESSAGE, message


_OUTCOMES = {GgufHeader: "loaded", WanVaceTransformer: "loaded as a transformer"}


def fuzz(cases: int, seed: int) -> dict[str, Any]:
    """Run the cases; what was seen: outcomes, seconds of the slowest, bytes of the largest."""
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    slowest = slowest_cpu = extra_bytes = 0.0
    repeated = 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = valid_files(folder)
        for data in files:
            header = check(data, folder)
            assert isinstance(header, GgufHeader), header
        whole = whole_transformer(folder)
        for residency in RESIDENCIES:
            loaded = check_loading(whole, folder, residency)
            assert isinstance(loaded, WanVaceTransformer), loaded
        for case in range(cases):
            if case % LOAD_EVERY == LOAD_EVERY - 1:
                data = mutate(rng, [whole])
                residency = RESIDENCIES[case // LOAD_EVERY % len(RESIDENCIES)]
                run_case = partial(check_loading, data, folder, residency)
            else:
                data = mutate(rng, files)
                run_case = partial(check, data, folder)
            measured = case % MEASURE_MEMORY_EVERY == 0
            if measured:
                tracemalloc.start()
            start, cpu_start = time.perf_counter(), time.process_time()
            try:
                outcome = run_case()
            except BaseException as error:
                error.add_note(f"case {case} of seed {seed}, {len(data)} bytes")
                raise
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            if measured:
                extra = tracemalloc.get_traced_memory()[1] - 2 * len(data)
                tracemalloc.stop()
                extra_bytes = max(extra_bytes, extra)
                assert extra <= ALLOWED_BESIDES_TWICE_THE_FILE, f"case {case}: {extra} bytes"
            if seconds >= MOST_SECONDS:
                repeated += 1
                least = min(timeit.repeat(run_case, number=1, repeat=REPEATS))
                assert least < MOST_SECONDS, f"case {case} of seed {seed} takes {least:.2f} s"
            slowest, slowest_cpu = max(slowest, seconds), max(slowest_cpu, cpu_seconds)
            outcomes[_OUTCOMES.get(type(outcome)) or type(outcome).__name__] += 1
    return {
        "cases": cases,
        "outcomes": dict(outcomes.most_common()),
        "slowest_seconds": round(slowest, 4),
        "slowest_cpu_seconds": round(slowest_cpu, 4),
        "repeated": repeated,
        "largest_bytes_beyond_twice_the_file": int(extra_bytes),
        "seconds": round(time.perf_counter() - began, 1),
    }


def run(cases: int = 100_000, seed: int = 0) -> dict[str, Any]:
    """The same for `make bench`."""
    return {"seed": seed} | fuzz(cases, seed)


def _place(rng: random.Random, data: bytearray) -> int:
    """Where to do damage: mostly at the numbers around a name, else anywhere, or in the counts."""
    names = [match.span() for match in re.finditer(rb"[ -~]{4,}", data)]
    if names and rng.random() < 0.6:
        start, end = rng.choice(names)
        # Before a name lies its length; behind a tensor's, dimensions, type and offset.
        place = rng.choice((start - 8, end, end + 4, end + 12)) + rng.choice((0, 0, 8, 16, 24))
        return min(max(0, place), len(data) - 1)
    return rng.randrange(max(1, min(24, len(data)) if rng.random() < 0.1 else len(data)))


def _flip_bit(rng: random.Random, data: bytearray, at: int, files: list[bytes]) -> None:
    if data:
        data[at] ^= 1 << rng.randrange(8)


def _set_byte(rng: random.Random, data: bytearray, at: int, files: list[bytes]) -> None:
    if data:
        data[at] = rng.choice((0, 1, 4, 8, 9, 12, 13, 30, 31, 127, 128, 255))


def _set_number(rng: random.Random, data: bytearray, at: int, files: list[bytes]) -> None:
    """An extreme or random value where a count, length, dimension, type or offset may be."""
    value = rng.choice((*_INTERESTING, len(data), len(data) // 8, rng.getrandbits(64)))
    layout = rng.choice("IQ")
    size = struct.calcsize(layout)
    data[at : at + size] = struct.pack(f"<{layout}", value & (256**size - 1))


def _add_to_number(rng: random.Random, data: bytearray, at: int, files: list[bytes]) -> None:
    if at + 8 <= len(data):
        (value,) = struct.unpack_from("<Q", data, at)
        change = rng.choice((-32, -8, -1, 1, 8, 32, 64))
        struct.pack_into("<Q", data, at, (value + change) % 2**64)


def _truncate(rng: random.Random, data: bytearray, at: int, files: list[bytes]) -> None:
    del data[at:]


def _cut(rng: random.Random, data: bytearray, at: int, files: list[bytes]) -> None:
    del data[at : at + rng.choice((1, 4, 8, 33, 200))]


def _repeat(rng: random.Random, data: bytearray, at: int, files: list[bytes]) -> None:
    data[at:at] = data[at : at + rng.choice((1, 8, 33, 200))]


def _insert(rng: random.Random, data: bytearray, at: int, files: list[bytes]) -> None:
    data[at:at] = rng.randbytes(rng.choice((1, 4, 8, 64)))


def _splice(rng: random.Random, data: bytearray, at: int, files: list[bytes]) -> None:
    """The rest comes from another file, from anywhere in it."""
    other = rng.choice(files)
    data[at:] = other[rng.randrange(len(other)) :]


def _overwrite(rng: random.Random, data: bytearray, at: int, files: list[bytes]) -> None:
    """A piece of the file over another: duplicate keys and names, shifted records."""
    size = rng.choice((4, 8, 24, 60))
    source = rng.randrange(max(1, len(data)))
    data[at : at + size] = data[source : source + size]


_MUTATIONS = (
    _flip_bit,
    _set_byte,
    _set_number,
    _set_number,
    _add_to_number,
    _truncate,
    _cut,
    _repeat,
    _insert,
    _splice,
    _overwrite,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    seen = fuzz(arguments.cases, arguments.seed)
    print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in seen.items()))


if __name__ == "__main__":
    main()
