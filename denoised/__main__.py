"""`python -m denoised`: the same as the `denoised` command, for the interpreter at hand."""

from __future__ import annotations

from denoised.cli import main

if __name__ == "__main__":
    main()
