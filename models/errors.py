"""Errors that model code raises and callers tell apart, each one line naming the culprit."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint cannot be used: a file is missing, damaged or does not fit the architecture.

    The message names the file and, where it is known, the tensor.
    """


class Cancelled(Exception):
    """Work was left in the middle because nobody wants its result any more.

    Raised by what a caller passes as `keep_going`; model code only lets it through. Weights and
    caches are intact.
    """


class UnsupportedCheckpoint(CheckpointError):
    """The checkpoint is sound but describes a model that this code does not implement."""
