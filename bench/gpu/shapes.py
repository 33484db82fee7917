"""The grid's shapes as forests: which nodes there are, how many tokens each holds, and who reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_CHUNK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device was measured to do."""

    bytes_per_second: float
    """Device-to-device copy, bytes read and written."""
    flops_per_second: float
    """Dense bf16 matrix product."""
    measured: bool = True
    """False where the measurement failed and KERNELS' figures for one H200 stand in."""


@dataclass(frozen=True, slots=True)
class Floor:
    """The least time a shape can take."""

    seconds: float
    bound: str
    """`memory` or `compute`: which of the two ceilings it is."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One row of the grid. Requests are in depth-first order: the readers of a node are neighbours."""

    name: str
    family: str
    parents: tuple[int, ...]
    """Parent of each node, -1 for a root; parents come before children."""
    tokens: tuple[int, ...]
    """Tokens of each node; a multiple of `chunk_tokens` where it has children."""
    leaves: tuple[int, ...]
    """Last node of each request, which no other request reads. Its last `rows` tokens are the new ones."""
    q_heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    rows: int = 1
    """New tokens of each request: 1 in decoding, more in prefill on a cached prefix."""
    slow_peers: bool = False
    """Whether peers that compile for each shape are timed on it too."""

    @property
    def chunk_tokens(self) -> int:
        """The largest power of two, up to 64, that every shared node is a multiple of."""
        inner = [self.tokens[parent] for parent in self.parents if parent >= 0]
        chunk = MOST_CHUNK_TOKENS
        while any(tokens % chunk for tokens in inner):
            chunk //= 2
        return chunk

    def path(self, request: int) -> list[int]:
        """A request's nodes, root first."""
        path = [self.leaves[request]]
        while (parent := self.parents[path[-1]]) >= 0:
            path.append(parent)
        return path[::-1]

    @property
    def paths(self) -> list[list[int]]:
        """Each request's nodes, root first."""
        return [self.path(request) for request in range(len(self.leaves))]

    @property
    def lengths(self) -> list[int]:
        """Tokens each request reads, its new ones included."""
        return [sum(self.tokens[node] for node in path) for path in self.paths]

    @property
    def readers(self) -> list[range]:
        """The requests that read each node."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for request, path in enumerate(self.paths):
            for node in path:
                first.setdefault(node, request)
                last[node] = request
        return [range(first[node], last[node] + 1) for node in range(len(self.tokens))]

    def kv_bytes(self, element_bytes: int = 2) -> int:
        """Keys and values of all nodes, each once."""
        return sum(self.tokens) * 2 * self.kv_heads * self.dim * element_bytes

    def replicated_bytes(self, element_bytes: int = 2) -> int:
        """Keys and values where every request has a copy of its own."""
        return sum(self.lengths) * 2 * self.kv_heads * self.dim * element_bytes

    def io_bytes(self, element_bytes: int = 2) -> int:
        """Queries and outputs."""
        return 2 * len(self.leaves) * self.rows * self.q_heads * self.dim * element_bytes

    @property
    def flops(self) -> int:
        """Of both products, over what the causal mask leaves."""
        seen = sum(self.rows * length - self.rows * (self.rows - 1) // 2 for length in self.lengths)
        return 4 * self.q_heads * self.dim * seen

    def floor(self, ceilings: Ceilings) -> Floor:
        """max(bytes / bandwidth, operations / rate)."""
        memory = (self.kv_bytes() + self.io_bytes()) / ceilings.bytes_per_second
        compute = self.flops / ceilings.flops_per_second
        return Floor(max(memory, compute), "memory" if memory >= compute else "compute")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much smaller than the grid a run is; the dry run's shapes must fit an interpreter."""

    tokens_divisor: int = 1
    requests_divisor: int = 1
    heads_divisor: int = 1
    dim: int = 128

    def tokens(self, count: int) -> int:
        """Tokens of a node, a multiple of 8 where there are that many."""
        if self.tokens_divisor == 1 or count <= 8:
            return count
        return max(8, count // self.tokens_divisor // 8 * 8)

    def nodes(self, count: int) -> int:
        """Nodes of a level; what is shared stays shared."""
        return max(min(count, 2), -(-count // self.requests_divisor))

    def heads(self, q_heads: int, kv_heads: int) -> tuple[int, int]:
        """Query and KV heads; the group stays."""
        scaled = max(1, kv_heads // self.heads_divisor)
        return scaled * (q_heads // kv_heads), scaled


FULL = Scale()
DRY = Scale(tokens_divisor=64, requests_divisor=64, heads_divisor=16, dim=32)


def levels(
    name: str,
    family: str,
    counts: Sequence[int],
    tokens: Sequence[int],
    scale: Scale,
    *,
    heads: tuple[int, int] = (32, 8),
    rows: int = 1,
    slow_peers: bool = False,
) -> Shape:
    """`counts[i]` nodes of `tokens[i]` tokens on level i, children dealt evenly; one request per leaf."""
    parents: list[int] = []
    sizes: list[int] = []
    above: list[int] = []
    for count, size in zip(map(scale.nodes, counts), tokens):
        level = range(len(parents), len(parents) + count)
        parents += [above[child * len(above) // count] if above else -1 for child in range(count)]
        sizes += [scale.tokens(size)] * count
        above = list(level)
    q_heads, kv_heads = scale.heads(*heads)
    return Shape(
        name,
        family,
        tuple(parents),
        tuple(sizes),
        tuple(above),
        q_heads,
        kv_heads,
        scale.dim,
        scale.tokens(rows),
        slow_peers,
    )


def forest(name: str, scale: Scale, heads: tuple[int, int], slow_peers: bool = False) -> Shape:
    """Eight roots of 512 to 8,192 tokens; below them no, one or two further shared levels; 8 requests per root."""
    parents: list[int] = []
    sizes: list[int] = []
    leaves: list[int] = []

    def node(parent: int, size: int) -> int:
        parents.append(parent)
        sizes.append(size)
        return len(parents) - 1

    def grow(parent: int, depth: int, requests: int, root: int) -> None:
        if depth == 0 or requests == 1:
            for _ in range(requests):
                own = 33 + 61 * len(leaves) % 500
                leaves.append(node(parent, max(1, own // scale.tokens_divisor)))
            return
        for half in (requests // 2, requests - requests // 2):
            if half:
                grow(node(parent, scale.tokens(256 * (1 + root % 2))), depth - 1, half, root)

    for root, size in enumerate((512, 1024, 1536, 2048, 3072, 4096, 6144, 8192)):
        grow(node(-1, scale.tokens(size)), root % 3, scale.nodes(8), root)
    q_heads, kv_heads = scale.heads(*heads)
    return Shape(
        name,
        "forest",
        tuple(parents),
        tuple(sizes),
        tuple(leaves),
        q_heads,
        kv_heads,
        scale.dim,
        1,
        slow_peers,
    )


def grid(scale: Scale = FULL) -> list[Shape]:
    """All rows, the published shapes first: what the budget cuts off is at the end."""
    mha = (32, 32)
    rows = [
        levels("ChunkAttention b32 np=ns=4096", "ChunkAttention", (1, 32), (4096, 1), scale, heads=mha),
        levels(
            "ChunkAttention b32 np 4096 ns 2048",
            "ChunkAttention",
            (1, 32),
            (2048, 2048),
            scale,
            heads=mha,
            slow_peers=True,
        ),
        levels("ChunkAttention b32 np=ns=2048", "ChunkAttention", (1, 32), (2048, 1), scale, heads=mha),
        levels("ChunkAttention b32 np=ns=1024", "ChunkAttention", (1, 32), (1024, 1), scale, heads=mha),
        levels("ChunkAttention b32 np 1024 ns 0", "no regret", (32,), (1024,), scale, heads=mha),
        levels("FastTree N 1,10", "FastTree", (1, 10), (4000, 400), scale, slow_peers=True),
        levels("FastTree N 1,1024", "FastTree", (1, 1024), (2048, 32), scale),
        levels(
            "FastTree N 1,4,16,64,256,1024",
            "FastTree",
            (1, 4, 16, 64, 256, 1024),
            (256, 8, 256, 64, 32, 256),
            scale,
        ),
        levels("PAT N 1,8,512", "PAT", (1, 8, 512), (512, 512, 256), scale),
        levels("PAT b256 L4096 unshared", "no regret", (256,), (4096,), scale),
        forest("forest of 8 roots 32/8", scale, (32, 8), slow_peers=True),
        forest("forest of 8 roots 28/4", scale, (28, 4)),
        levels("prefill 512 on 8192 b8", "prefill", (1, 8), (8192, 512), scale, rows=512),
        levels("b1 L1024", "no regret", (1,), (1024,), scale),
        levels("b1 L8192", "no regret", (1,), (8192,), scale),
        levels("b1 L32768", "no regret", (1,), (32768,), scale),
        levels("b8 prefix 256 own 256", "no regret", (1, 8), (256, 256), scale),
    ]
    # In the dry run one prefix and one suffix stand for all: scaled down they are alike.
    whole = scale == FULL
    for prefix in (8192, 1024, 32768) if whole else (1024,):
        for batch in (64, 256, 8):
            for own in (128, 512, 2048) if whole else (512,):
                name = f"cascade prefix {prefix} own {own} b{batch}"
                rows.append(levels(name, "cascade", (1, batch), (prefix, own), scale))
    return rows
