"""The process that decodes untrusted files, so that what they do to a decoder stays here.

Reads one JSON request a line, `{"path", "limits", "seconds"}`, and answers each with one line,
`{"info"}` or `{"error"}`. A file that takes too long has the process killed by its own alarm, one
that takes too much memory meets the process' limit; the end of the input is the end of it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import av
from PIL import Image

from jobs.media.info import MediaError, MediaLimits
from jobs.media.probe import probe

READY = b"ready\n"
"""Said once the decoders are loaded, so that a failed start is not blamed on a file."""

MAX_MEMORY_BYTES = 4 << 30
"""Address space: room for two dozen of the largest frames that a decoder may hold back."""


def main() -> None:
    """Answers requests until standard input ends."""
    answers = _take_stdout()
    # Ctrl-C at a terminal reaches every process; the one that started this one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    limits = MediaLimits.model_validate(request["limits"])
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    try:
        info = probe(Path(request["path"]), limits=limits)
        return {"info": info.model_dump(mode="json")}
    except MediaError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "takes too much memory to decode"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _take_stdout() -> BinaryIO:
    """Standard output for the answers alone; what libraries print goes nowhere."""
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return answers


if __name__ == "__main__":
    main()
