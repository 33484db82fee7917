"""The grid's shapes against the table they were written for."""

from __future__ import annotations

import pytest

from bench.gpu.shapes import DRY, FULL, Ceilings, Shape, forest, grid, levels

H200 = Ceilings(4.3e12, 790e12)

PUBLISHED = {
    "ChunkAttention b32 np=ns=4096": (67, 15.7),
    "ChunkAttention b32 np 4096 ns 2048": (1107, 258),
    "ChunkAttention b32 np=ns=2048": (34, 7.9),
    "ChunkAttention b32 np=ns=1024": (17, 4.0),
    "ChunkAttention b32 np 1024 ns 0": (537, 125),
    "FastTree N 1,10": (33, 7.7),
    "FastTree N 1,1024": (143, 44),
    "FastTree N 1,4,16,64,256,1024": (1142, 270),
    "PAT N 1,8,512": (556, 131),
    "PAT b256 L4096 unshared": (4295, 1000),
}
"""Megabytes of unique KV and floor in microseconds, without queries and outputs."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows_have_their_published_floor(name: str) -> None:
    shape = next(shape for shape in grid() if shape.name == name)
    megabytes, microseconds = PUBLISHED[name]
    # Each request has one token of its own where the publication has none, and Q and O count here.
    assert shape.kv_bytes() / 1e6 == pytest.approx(megabytes, rel=0.02)
    assert shape.floor(H200).seconds * 1e6 == pytest.approx(microseconds, rel=0.05)


def test_names_are_unique_at_any_scale() -> None:
    for scale in (FULL, DRY):
        names = [shape.name for shape in grid(scale)]
        assert len(names) == len(set(names))


def well_formed(shape: Shape) -> None:
    assert all(-1 <= parent < node for node, parent in enumerate(shape.parents))
    inner = {parent for parent in shape.parents if parent >= 0}
    assert not inner & set(shape.leaves)
    for node, readers in enumerate(shape.readers):
        assert [r for r in range(len(shape.leaves)) if node in shape.path(r)] == list(readers)
        if node in inner:
            assert shape.tokens[node] % shape.chunk_tokens == 0
    for leaf in shape.leaves:
        assert len(shape.readers[leaf]) == 1
        assert shape.tokens[leaf] >= shape.rows
    assert shape.q_heads % shape.kv_heads == 0


@pytest.mark.parametrize("shape", grid(DRY), ids=lambda shape: shape.name)
def test_rows_are_forests_in_depth_first_order(shape: Shape) -> None:
    well_formed(shape)


@pytest.mark.parametrize("heads", [(32, 8), (28, 4)])
def test_the_uneven_forest(heads: tuple[int, int]) -> None:
    shape = forest("forest", FULL, heads)
    well_formed(shape)
    assert sum(parent < 0 for parent in shape.parents) == 8
    assert len({len(path) for path in shape.paths}) >= 3, "uneven depths"
    assert len(shape.leaves) == 64


def test_scaled_down_shapes_still_share() -> None:
    for full, dry in ((shape, shape_dry) for shape in grid() for shape_dry in grid(DRY)):
        if full.name == dry.name:
            assert (max(map(len, full.readers)) > 1) == (max(map(len, dry.readers)) > 1)
            assert full.q_heads // full.kv_heads == dry.q_heads // dry.kv_heads


def test_operations_are_what_the_causal_mask_leaves() -> None:
    shape = levels("prefill", "", (1, 2), (64, 16), FULL, rows=16)
    seen = 2 * sum(64 + row + 1 for row in range(16))
    assert shape.flops == 4 * 32 * 128 * seen


@pytest.mark.parametrize(
    ("tokens", "chunk"), [((4000, 400), 32), ((256, 8, 5), 8), ((128, 1), 64), ((3,), 64)]
)
def test_chunks_divide_what_is_shared(tokens: tuple[int, ...], chunk: int) -> None:
    assert levels("", "", [1] * len(tokens), tokens, FULL).chunk_tokens == chunk
