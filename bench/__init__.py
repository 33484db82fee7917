"""Benchmarks: `python -m bench` runs all that need no GPU, correctness gate first."""
