"""Benchmarks: each module with a `run() -> dict` measures one thing; `bench.run` collects them.

Figures are medians of interleaved rounds and ratios inside one run. Nothing here asserts a time.
"""
