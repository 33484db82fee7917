"""Every invariant of the tree, checked from scratch. For tests and `KVTRIE_CHECK=1`; O(nodes)."""

from __future__ import annotations

from collections import Counter

from kvtrie.prefix_tree.held_paths import Lease, Pin
from kvtrie.prefix_tree.keys import TOKEN_BYTES
from kvtrie.prefix_tree.node import Node, Residence
from kvtrie.prefix_tree.tier import ScopeBytes
from kvtrie.prefix_tree.tree import PrefixTree


def check(tree: PrefixTree) -> None:
    """Raises AssertionError, naming the node at fault, if any invariant does not hold."""
    nodes = list(tree.walk())
    known = set(map(id, nodes)) | set(map(id, tree.roots()))
    for node in nodes:
        _check_node(tree, node)
    for key, node in tree._index.items():
        assert id(node) in known and node.key == key, (
            f"index names a node that is not in the tree: {key.hex()}"
        )
    for root in tree.roots():
        _check_order(root)
        assert not root.is_resident and root.claim is None
    assert len(tree) == len(nodes), "index and collided nodes are not as many as all nodes"
    assert set(map(id, tree.nodes())) == set(map(id, nodes)), "index and collided nodes are not all nodes"
    _check_roots(tree, nodes)
    _check_holds(tree, nodes)
    _check_pins(tree)
    assert tree.tombstones.size_bytes <= tree.tombstones.most_bytes, "tombstones beyond their bound"
    for number in range(len(tree.tiers)):
        _check_tier(tree, number, nodes)


def _check_node(tree: PrefixTree, node: Node) -> None:
    name = f"node {node.key.hex()} at depth {node.depth}"
    parent = node.parent
    assert parent is not None and parent.find(node.root, node.tokens) is node, f"{name}: unlinked"
    assert node.depth == parent.depth + 1, f"{name}: depth"
    assert len(node.tokens) == tree.chunk_tokens * TOKEN_BYTES, f"{name}: not a whole chunk"
    before = b"".join(above.tokens for above in node.path())
    assert node.key == tree.chain_key(node.root.key, before, node.depth), f"{name}: key chain"
    assert node.is_resident or node.claim is not None, f"{name}: neither resident nor pending"
    assert not (node.is_resident and node.claim is not None), f"{name}: resident and pending"
    if node.claim is not None:
        assert node in node.claim.nodes, f"{name}: its claim does not know it"
    for tier, residence in enumerate(node.at):
        if residence is not None:
            assert residence.node is node and residence.tier == tier, f"{name}: foreign residence"
            assert parent.depth == 0 or parent.at[tier] is not None, f"{name}: tier {tier} not prefix-closed"
    _check_order(node)


def _check_order(node: Node) -> None:
    for children in (node.children, *(node.grafts or {}).values()):
        if children is None or isinstance(children, Node):
            continue
        assert len(children) > 1, f"an only child of {node.key.hex()} is kept in a list"
        tokens = [child.tokens for child in children]
        assert tokens == sorted(set(tokens)), f"children of {node.key.hex()} are not in order"


def _check_roots(tree: PrefixTree, nodes: list[Node]) -> None:
    roots = tree.roots()
    count = Counter(id(node.root) for node in nodes)
    digests = [root.key for root in roots]
    assert len(digests) == len(set(digests)), "two roots of one namespace"
    assert set(count) <= set(map(id, roots)), "a node of a root that is not kept"
    for root in roots:
        assert root.nodes == count[id(root)], f"nodes of root {root.key.hex()}"
    idle = sum(root.nodes == 0 for root in roots)
    assert tree._roots.idle == idle <= tree._roots.most_idle, "idle roots"


def _check_pins(tree: PrefixTree) -> None:
    of_scope: dict[str, set[Node]] = {}
    for pin in tree.pins:
        of_scope.setdefault(pin.node.root.scope, set()).update(pin.node.path())
    plain = {scope: sum(node.largest_bytes for node in nodes) for scope, nodes in of_scope.items()}
    assert {scope: size for scope, size in plain.items() if size} == tree._pin_book.by_scope(), "pinned bytes"
    ending = {pin for pin in tree.pins if pin.ends_seconds is not None}
    assert ending == {tree._pin_book._by_number.get(number) for _, number in tree._pin_book._ending} - {
        None
    }, "a pin that nothing will end"


def _check_holds(tree: PrefixTree, nodes: list[Node]) -> None:
    holds: Counter[int] = Counter()
    uses: Counter[int] = Counter()
    holders: list[Lease | Pin] = [*tree.leases, *tree.pins]
    for holder in holders:
        for residence in holder.held:
            holds[id(residence)] += 1
            uses[id(residence)] += holder.uses if isinstance(holder, Lease) else 0
            assert residence.node.at[residence.tier] is residence, "a held chunk was evicted"
    for node in nodes:
        for here in node.at:
            if here is not None:
                assert here.holds == holds[id(here)], f"holds of {node.key.hex()}"
                assert here.uses >= uses[id(here)], f"uses of {node.key.hex()}"


def _check_tier(tree: PrefixTree, number: int, nodes: list[Node]) -> None:
    tier = tree.tiers[number]
    assert tier.policy_error is None, f"{tier.name}: its policy raised {tier.policy_error!r}"
    here: list[Residence] = [r for node in nodes if (r := node.at[number]) is not None]
    for residence in here:
        children = [c for c in residence.node.all_children() if c.at[number] is not None]
        assert residence.children == len(children), f"child count of {residence.node.key.hex()}"
        assert residence.children_ever >= residence.children, f"children ever of {residence.node.key.hex()}"
        assert residence.stored_at <= residence.last_use, f"last use of {residence.node.key.hex()}"
        if residence.evictable:
            assert residence in tier.policy, f"leaf {residence.node.key.hex()} is not queued for eviction"
    assert tier.chunks == len(here)
    assert tier.used_bytes == sum(r.size_bytes for r in here), f"{tier.name}: used bytes"
    assert tier.free_bytes >= 0, f"{tier.name}: over capacity"
    scopes: dict[str, ScopeBytes] = {}
    for residence in here:
        booked = scopes.setdefault(residence.node.root.scope, ScopeBytes())
        booked.used_bytes += residence.size_bytes
    pending = 0
    for scope, actual in tier.scopes.items():
        pending += actual.pending_bytes
        assert actual.used_bytes == scopes.get(scope, ScopeBytes()).used_bytes, f"{tier.name}: {scope}"
    assert set(scopes) <= set(tier.scopes)
    assert pending == tier.pending_bytes, f"{tier.name}: pending bytes"
