"""The front door: command line, supervisor for one machine, Python client.

Everything a person types or imports first lies here; the work is done by the packages behind it.
"""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("denoised")
