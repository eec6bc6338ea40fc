"""Failures that a person is meant to read: at the command line one line and no traceback."""

from __future__ import annotations


class CommandError(Exception):
    """An expected failure. The message is shown as is; `exit_code` becomes the exit status.

    1 is a failure of the work, 2 a mistake in what was asked.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ClientError(Exception):
    """Anything that keeps the HTTP client from giving an answer."""
