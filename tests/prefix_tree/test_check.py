"""`check` is the judge of the random tests: here it must find each kind of damage."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvtrie.prefix_tree import Residence, check

DEVICE, HOST = 0, 1


def claim_node(forest, path) -> None:
    match = forest.match("a", [7, 7])
    path[0].claim = forest.tree.claim(match, forest.bytes([7, 7]))


def forget_claim(forest, path) -> None:
    claim_node(forest, path)
    path[0].claim, claim = None, path[0].claim
    claim.nodes[0].claim = None


def disown_claim(forest, path) -> None:
    claim_node(forest, path)
    path[0].claim, claim = None, path[0].claim
    claim.nodes.clear()


def evict_held(forest, path) -> None:
    forest.tree.lease_node(path[2])
    path[2].at[DEVICE] = Residence(path[2], DEVICE, "another", 1, 9)


def duplicate_child(forest, path) -> None:
    forest.root("a").children.append(forest.root("a").children[-1])


DAMAGE: dict[str, tuple[str, Callable[..., object]]] = {
    "a resident chunk counted as pending": ("resident and pending", claim_node),
    "neither": ("neither resident nor pending", forget_claim),
    "claim without the node": ("claim does not know it", disown_claim),
    "depth": ("depth", lambda f, p: setattr(p[1], "depth", 7)),
    "parent": ("unlinked", lambda f, p: setattr(p[2], "parent", p[0])),
    "short chunk": ("whole chunk", lambda f, p: setattr(p[2], "tokens", p[2].tokens[:4])),
    "key": ("key", lambda f, p: setattr(p[2], "key", b"x" * 16)),
    "tokens": ("key chain", lambda f, p: setattr(p[2], "tokens", f.bytes([9, 9]))),
    "index": ("index names a node that is not in the tree", lambda f, p: f.tree._index.update({b"x": p[0]})),
    "sibling order": ("not in order", lambda f, p: p[0].children.reverse()),
    "root order": ("not in order", duplicate_child),
    "foreign residence": ("foreign", lambda f, p: p[0].at.reverse()),
    "gap in a tier": ("prefix-closed", lambda f, p: p[0].at.__setitem__(DEVICE, None)),
    "hold too many": ("holds of", lambda f, p: setattr(p[1].at[DEVICE], "holds", 1)),
    "hold too few": (
        "holds of",
        lambda f, p: (f.tree.lease_node(p[2]), setattr(p[2].at[DEVICE], "holds", 0)),
    ),
    "uses too few": (
        "uses of",
        lambda f, p: (f.tree.lease(f.match("a", [1, 2, 3, 4, 5, 6])), setattr(p[2].at[DEVICE], "uses", 0)),
    ),
    "held chunk evicted": ("held chunk was evicted", evict_held),
    "children": ("child count", lambda f, p: setattr(p[0].at[DEVICE], "children", 1)),
    "children ever": ("children ever of", lambda f, p: setattr(p[0].at[DEVICE], "children_ever", 0)),
    "last use": ("last use of", lambda f, p: setattr(p[0].at[DEVICE], "last_use", 0)),
    "only child in a list": ("is kept in a list", lambda f, p: setattr(p[1], "children", [p[2]])),
    "not queued": ("not queued", lambda f, p: f.tree.tiers[DEVICE].policy.discard(p[2].at[DEVICE])),
    "chunks": ("", lambda f, p: setattr(f.tree.tiers[DEVICE], "chunks", 3)),
    "used bytes": ("used bytes", lambda f, p: setattr(f.tree.tiers[DEVICE], "used_bytes", 3)),
    "size": ("used bytes", lambda f, p: setattr(p[0].at[DEVICE], "size_bytes", 3)),
    "capacity": ("over capacity", lambda f, p: setattr(f.tree.tiers[DEVICE], "capacity_bytes", 3)),
    "scope used": ("device: a", lambda f, p: setattr(f.tree.tiers[DEVICE].scopes["a"], "used_bytes", 9)),
    "scope lost": ("", lambda f, p: f.tree.tiers[DEVICE].scopes.clear()),
    "pending": ("pending bytes", lambda f, p: setattr(f.tree.tiers[DEVICE], "pending_bytes", 9)),
    "resident root": ("", lambda f, p: f.root("a").at.__setitem__(DEVICE, p[0].at[DEVICE])),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found(forest, kind: str) -> None:
    path = forest.store("a", [1, 2, 3, 4, 5, 6])
    forest.store("a", [1, 2, 8, 8])
    forest.store("a", [9, 9])
    forest.copy(path[0], HOST)
    check(forest.tree)
    message, damage = DAMAGE[kind]
    damage(forest, path)
    with pytest.raises(AssertionError, match=message or None):
        check(forest.tree)
