"""The process that decodes untrusted files, so that what they do to a decoder stays here.

Reads one JSON request a line, `{"path", "limits", "seconds", "patience"}`, and answers each with
one line, `{"info"}`, `{"error"}` or, for a file that takes more processor time than `seconds`,
`{"slow"}`. A file that keeps the decoder where it cannot be interrupted has the process killed by
its limit (SIGXCPU), one that gets nowhere for `patience` by its alarm (SIGALRM), and one that takes
too much memory meets the process' limit; the end of the input is the end of it.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import av
from PIL import Image

from jobs.media.info import MediaError, MediaLimits
from jobs.media.probe import probe

READY = b"ready\n"
"""Said once the decoders are loaded, so that a failed start is not blamed on a file."""

GRACE = 2
"""Seconds of processor time that a decoder has to come back in."""

MAX_MEMORY_BYTES = 4 << 30
"""Address space: room for two dozen of the largest frames that a decoder may hold back."""


def main() -> None:
    """Answers requests until standard input ends."""
    answers = _take_stdout()
    # Ctrl-C at a terminal reaches every process; the one that started this one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, _on_time_up)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    av.logging.set_level(None)
    # Said below twice the limit, where `probe` refuses by itself; above, Pillow raises.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    answers.write(READY)
    answers.flush()
    for line in sys.stdin.buffer:
        answers.write(json.dumps(_answer(json.loads(line))).encode() + b"\n")
        answers.flush()


class _TookLonger(BaseException):
    """The time is up. Not an `Exception`: decoders' errors are turned into refusals."""


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    limits = MediaLimits.model_validate(request["limits"])
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    try:
        _start_clocks(request["seconds"], request["patience"])
        try:
            info = probe(Path(request["path"]), limits=limits)
        finally:
            _stop_clocks()
        return {"info": info.model_dump(mode="json")}
    except MediaError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "takes too much memory to decode"}
    except _TookLonger:
        _stop_clocks()
        return {"slow": True}


def _start_clocks(seconds: float, patience: float) -> None:
    """For `seconds` of processor time within `patience` by the clock."""
    spent = time.process_time() + seconds + GRACE
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(spent), resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_REAL, patience)
    # Again and again: what is raised while something is being cleaned up may be lost.
    signal.setitimer(signal.ITIMER_PROF, seconds, GRACE / 4)


def _stop_clocks() -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _on_time_up(number: int, frame: object) -> None:
    raise _TookLonger


def _take_stdout() -> BinaryIO:
    """Standard output for the answers alone; what libraries print goes nowhere."""
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return answers


if __name__ == "__main__":
    main()
