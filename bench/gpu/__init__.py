"""What only a GPU can tell: `python -m bench.gpu`. Correctness first, then ceilings, the grid, and serving."""
