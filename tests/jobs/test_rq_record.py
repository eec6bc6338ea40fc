"""The job call in RQ's format: ours comes back, anything else is refused, nothing is inflated
without bound."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import ForeignJob
from jobs.rq_record import MAX_CALL_BYTES, decode_call, encode_call, time_from_us
from jobs.types import NewJob

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=4), st.booleans())
def test_a_call_comes_back_plain_and_compressed(given_input: dict[str, Any], packed: bool) -> None:
    data = encode_call(NewJob("id", "model", given_input, 4))
    call = decode_call(zlib.compress(data) if packed else data)
    assert (call.model, call.input) == ("model", given_input)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x05]\x94.",
        b"[",
        b"[1, 2]",
        b"[" * 100_000,
        json.dumps(["os.system", None, ["true"], {}]).encode(),
        json.dumps(["denoised.generate", None, ["extra"], {}]).encode(),
        json.dumps(["denoised.generate", "instance", [], {"model": "m", "input": {}}]).encode(),
        json.dumps(["denoised.generate", None, [], {"model": "m"}]).encode(),
        json.dumps(["denoised.generate", None, [], {"model": 3, "input": {}}]).encode(),
        zlib.compress(b"no json"),
    ],
    ids=range(11),
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ForeignJob, match="PermissionError"):
        decode_call(data)


def test_a_compression_bomb_is_refused_at_the_limit() -> None:
    bomb = zlib.compress(b"[" + b" " * (64 * MAX_CALL_BYTES))
    with pytest.raises(ForeignJob, match="longer than"):
        decode_call(bomb)


def test_a_plain_call_is_held_to_the_same_limit(make_job: Callable[..., NewJob]) -> None:
    data = encode_call(make_job(input={"prompt": "x" * MAX_CALL_BYTES}))
    with pytest.raises(ForeignJob, match="longer than"):
        decode_call(data)


@given(st.integers(0, 2**52))
def test_times_keep_their_microseconds(microseconds: int) -> None:
    time = time_from_us(microseconds)
    assert int(time.timestamp()) * 10**6 + time.microsecond == microseconds
