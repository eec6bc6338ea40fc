"""Work in a thread of its own: in its order, and without a trace once it is done."""

from __future__ import annotations

import threading
import time
import weakref

import pytest

from workers.background import BackgroundThread


class Result:
    """What some work made."""


def test_work_is_done_in_the_order_in_which_it_came() -> None:
    thread, done = BackgroundThread("test"), []
    for number in range(20):
        last = thread.submit(lambda number=number: done.append(number))
    last.result(timeout=10)
    assert done == [*range(20)]


def test_what_goes_wrong_is_told_and_the_next_work_is_done() -> None:
    thread = BackgroundThread("test")
    broken = thread.submit(lambda: [][1])
    assert thread.submit(lambda: 7).result(timeout=10) == 7
    with pytest.raises(IndexError):
        broken.result(timeout=10)


def test_work_that_is_cancelled_in_time_is_not_done() -> None:
    thread, go, done = BackgroundThread("test"), threading.Event(), []
    first = thread.submit(go.wait)
    second = thread.submit(lambda: done.append(2))
    assert second.cancel()
    go.set()
    assert first.result(timeout=10)
    assert thread.submit(lambda: done.append(3)).result(timeout=10) is None
    assert done == [3]


def test_a_thread_without_work_keeps_nothing_of_the_last() -> None:
    thread = BackgroundThread("test")
    result = thread.submit(Result).result(timeout=10)
    seen = weakref.ref(result)
    del result
    assert_gone(seen)


def test_a_thread_without_work_keeps_nothing_of_what_was_cancelled() -> None:
    thread, go, media = BackgroundThread("test"), threading.Event(), Result()
    first = thread.submit(go.wait)
    second = thread.submit(lambda media=media: media)
    assert second.cancel()
    seen = weakref.ref(media)
    del media, second
    go.set()
    assert first.result(timeout=10)
    assert_gone(seen)


def assert_gone(seen: weakref.ref[Result]) -> None:
    # The thread lets go a moment after it has told, and then waits for what comes next.
    deadline = time.monotonic() + 10
    while seen() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen() is None
