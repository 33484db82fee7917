"""The picture of a tree: complete, settled upwards, and the same again after JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from kvtrie.prefix_tree import InputError, Namespace, Snapshot, copy_tree, take_snapshot
from kvtrie.prefix_tree.roots import ROOT_BYTES
from kvtrie.prefix_tree.snapshot import NodeView, PinView
from kvtrie.prefix_tree.tombstones import RING_BYTES, TOMBSTONE_BYTES
from tests.prefix_tree.work_count import lines_run

DEVICE, HOST = 0, 1


@pytest.fixture
def picture(forest) -> Snapshot:
    """A shared path, a tenant's continuation, a lease, a pin, a claim, two tiers, an eviction."""
    tree = forest.tree
    shared = forest.store("s", [1, 2, 3, 4], size_bytes=5)
    forest.copy(shared[0], HOST, size_bytes=3)
    (gone,) = forest.store("a", [9, 9])
    for node in shared:
        tree.lease_node(node)
    forest.now = 1010.0
    assert forest.evict(DEVICE, 1) == [gone]
    mine = forest.store("a", [1, 2, 5, 6], ["s"])
    tree.pin(mine[1], "mine", 990.0)
    tree.tiers[HOST].reserve("a", 7)
    tree.claim(forest.match("a", [7, 7]), forest.bytes([7, 7]))
    forest.now = 1020.0
    tree.lease(forest.match("a", [1, 2, 5, 6], ["s"]))
    forest.now = 1030.0
    return take_snapshot(tree, "engine", {"requests": 3, "hit_rate": 0.5})


def node_with(picture: Snapshot, *tokens: int) -> NodeView:
    (found,) = [node for node in picture.nodes if node.tokens == list(tokens)]
    return found


def test_nodes_name_their_parents_and_namespaces(picture: Snapshot) -> None:
    assert [node.id for node in picture.nodes] == list(range(len(picture.nodes)))
    first, shared, mine = (node_with(picture, *t) for t in ((1, 2), (3, 4), (5, 6)))
    assert (first.parent, first.depth) == (None, 1)
    assert (shared.parent, shared.depth) == (mine.parent, mine.depth) == (first.id, 2)
    scopes = [picture.namespaces[node.namespace].scope for node in (first, shared, mine)]
    assert scopes == ["s", "s", "a"]
    seen: set[int | None] = {None}
    for node in picture.nodes:
        assert node.parent in seen
        seen.add(node.id)


def test_keys_and_digests_are_hex(picture: Snapshot, forest) -> None:
    root = forest.root("s")
    assert picture.namespaces[0].digest == root.key.hex()
    assert node_with(picture, 1, 2).key == forest.tree.next_key(root.key, forest.bytes([1, 2])).hex()


def test_readers_hits_last_use_and_pins_are_settled_upwards(picture: Snapshot) -> None:
    first, shared, mine = (node_with(picture, *t) for t in ((1, 2), (3, 4), (5, 6)))
    assert (first.readers, shared.readers, mine.readers) == (3, 1, 1)
    assert (first.hits, shared.hits, mine.hits) == (1, 0, 1)
    assert (first.last_used_at, shared.last_used_at, mine.last_used_at) == (1020.0, 1000.0, 1020.0)
    assert first.pin == mine.pin == PinView("mine", 2000.0)
    assert shared.pin is None
    assert (first.created_at, mine.created_at) == (1000.0, 1010.0)


def test_tiers_and_pending_chunks(picture: Snapshot) -> None:
    assert node_with(picture, 1, 2).tiers == {"device": 5, "host": 3}
    assert node_with(picture, 3, 4).tiers == {"device": 5}
    pending = node_with(picture, 7, 7)
    assert (pending.pending, pending.tiers) == (True, {})
    assert [node.pending for node in picture.nodes].count(True) == 1
    device, host = picture.tiers
    assert (device.name, device.capacity_bytes, device.used_bytes, device.chunks) == ("device", 1000, 11, 3)
    assert device.scopes["s"] == {"used_bytes": 10, "pending_bytes": 0}
    assert (host.used_bytes, host.pending_bytes, host.free_bytes) == (3, 7, 990)
    assert host.scopes["a"] == {"used_bytes": 0, "pending_bytes": 7}


def test_the_longest_pin_below_is_shown(forest) -> None:
    top, one, two, three = (*forest.store("a", [1, 2, 3, 4]), *forest.store("a", [1, 2, 5, 6])[1:],
                            *forest.store("a", [1, 2, 7, 8])[1:])  # fmt: skip
    forest.tree.pin(one, "short", 1000.0)
    forest.tree.pin(two, "long", 2000.0)
    assert take_snapshot(forest.tree, "engine").nodes[0].pin == PinView("long", 3000.0)
    forest.tree.pin(three, "for ever")
    picture = take_snapshot(forest.tree, "engine")
    assert [node.pin.name for node in picture.nodes if node.pin] == ["for ever", "short", "long", "for ever"]
    assert picture.nodes[0].depth == top.depth


def test_evictions_tombstones_and_counters(picture: Snapshot) -> None:
    (stone,) = picture.tombstones
    assert (stone.scope, stone.depth, stone.tier, stone.evicted_at) == ("a", 1, "device", 1010.0)
    assert stone.reason == "least recently used"
    assert picture.counters == {
        "requests": 3,
        "hit_rate": 0.5,
        "evictions.least recently used": 1,
        "namespaces": 2,
        "namespace_bytes": 2 * ROOT_BYTES,
        "tombstones": 1,
        "tombstone_bytes": TOMBSTONE_BYTES + RING_BYTES,
        "pins": 1,
        "pinned_bytes": 6,
    }
    assert (picture.source, picture.taken_at, picture.chunk_tokens) == ("engine", 1030.0, 2)


def test_taking_a_picture_changes_nothing(picture: Snapshot, forest) -> None:
    assert take_snapshot(forest.tree, "engine", {"requests": 3, "hit_rate": 0.5}) == picture


def test_a_copy_is_the_tree_of_one_moment_whatever_becomes_of_it(picture: Snapshot, forest) -> None:
    """Everything that can change does, between the copy and the snapshot made of it."""
    tree = forest.tree
    copied = copy_tree(tree)
    for lease in list(tree.leases):
        tree.release(lease)
    for pin in list(tree.pins):
        tree.unpin(pin)
    forest.now += 1000
    forest.set_by = -5000.0
    forest.evict(DEVICE, 2)
    (shared,) = forest.match("s", [1, 2]).path
    forest.copy(forest.store("s", [1, 2, 3, 4])[1], HOST)
    forest.store("s", [1, 2, 0, 0])
    forest.store("new", [1, 2])
    tree.release(tree.lease(forest.match("s", [1, 2])))
    (claim,) = {node.claim for node in tree.walk() if node.claim is not None}
    tree.publish(claim, DEVICE, "computed", 1)
    tree.tiers[HOST].unreserve("a", 7)
    assert copied.snapshot("engine", {"requests": 3, "hit_rate": 0.5}) == picture
    assert take_snapshot(tree, "engine") != picture
    forest.evict(DEVICE, 1000)
    forest.evict(HOST, 1000)
    assert len(tree) == 0
    assert shared.children is None
    assert copied.snapshot("engine", {"requests": 3, "hit_rate": 0.5}) == picture


def test_a_copy_takes_little_of_the_work(make_forest) -> None:
    """What the lock is held for, against the snapshot."""
    forest = make_forest(capacity_bytes=10_000)
    for number in range(300):
        forest.store("a", [number % 7, 1, number, 2, 3, 3])
    copied = copy_tree(forest.tree)
    under_the_lock = lines_run(lambda: copy_tree(forest.tree))
    assert 10 * under_the_lock < lines_run(lambda: copied.snapshot("engine"))


def test_nodes_whose_keys_collide_are_in_the_picture(make_forest) -> None:
    forest = make_forest(digest=lambda data: b"same")
    for tokens in ([1, 2, 3, 4], [1, 2, 5, 6], [7, 8]):
        forest.store("a", tokens)
    picture = take_snapshot(forest.tree, "engine")
    assert [node.tokens for node in picture.nodes] == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert [node.parent for node in picture.nodes] == [None, 0, 0, None]


def test_the_order_is_that_of_a_walk(forest) -> None:
    """Depth first, in token order (little-endian bytes), and a tenant's continuations after the scope's own."""
    for scope, tokens, readable in (
        ("s", [1, 2, 256, 0], []),
        ("s", [1, 2, 1, 0], []),
        ("a", [1, 2, 0, 0], ["s"]),
        ("a", [3, 3], []),
        ("s", [0, 9], []),
    ):
        forest.store(scope, tokens, readable)
    picture = take_snapshot(forest.tree, "engine")
    walked = [(node.root.key.hex(), node.key.hex()) for node in forest.tree.walk()]
    assert [(picture.namespaces[n.namespace].digest, n.key) for n in picture.nodes] == walked
    shown = [node.tokens for node in picture.nodes]
    assert shown == [[0, 9], [1, 2], [256, 0], [1, 0], [0, 0], [3, 3]]


def test_json_there_and_back(picture: Snapshot) -> None:
    text = picture.to_json()
    assert Snapshot.from_json(text) == picture
    assert Snapshot.from_json(text.encode()) == picture
    assert Snapshot.from_json(text).to_json() == text
    assert json.loads(text)["format"] == "kvtrie-snapshot"


def test_an_empty_tree_has_a_picture_too(forest) -> None:
    picture = take_snapshot(forest.tree, "engine")
    assert picture.nodes == []
    assert Snapshot.from_json(picture.to_json()) == picture


def test_no_salt_in_the_picture(forest) -> None:
    forest.tree.root(Namespace("a", salt="s3cret"))
    assert "s3cret" not in take_snapshot(forest.tree, "engine").to_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "\x00",
        b"\xff\xfe\xfa",
        "[" * 100_000,
        "[]",
        "5",
        "null",
        '"kvtrie-snapshot"',
        "{}",
        '{"format": "other"}',
    ],
)
def test_garbage_is_refused(text: str | bytes) -> None:
    with pytest.raises(InputError, match="not a kvtrie snapshot"):
        Snapshot.from_json(text)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_versions_are_refused(picture: Snapshot, version: object) -> None:
    document = {**json.loads(picture.to_json()), "version": version}
    with pytest.raises(InputError, match=f"snapshot version {version!r} is not 1"):
        Snapshot.from_json(json.dumps(document))


PLACES: dict[str, Callable[[dict], dict]] = {
    "snapshot": lambda d: d,
    "node": lambda d: d["nodes"][0],
    "tier": lambda d: d["tiers"][0],
    "namespace": lambda d: d["namespaces"][0],
    "namespace fields": lambda d: d["namespaces"][0]["fields"],
    "tombstone": lambda d: d["tombstones"][0],
    "pin": lambda d: next(node["pin"] for node in d["nodes"] if node["pin"]),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_missing_field_is_refused_wherever_it_is(picture: Snapshot, place: str) -> None:
    text = picture.to_json()
    names = [n for n in PLACES[place](json.loads(text)) if n not in ("format", "version")]
    assert names
    for name in names:
        document = json.loads(text)
        del PLACES[place](document)[name]
        with pytest.raises(InputError, match=r"damaged kvtrie snapshot|namespace document"):
            Snapshot.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nodes", None),
        ("nodes", [5]),
        ("nodes", 7),
        ("tiers", ["device"]),
        ("namespaces", [{"digest": "", "fields": 3}]),
        ("namespaces", [{"digest": "", "fields": []}]),
        ("tombstones", {"a": 1}),
        ("counters", 3),
        ("counters", [[1, 2, 3]]),
    ],
)
def test_parts_of_the_wrong_kind_are_refused(picture: Snapshot, name: str, value: object) -> None:
    document = {**json.loads(picture.to_json()), name: value}
    with pytest.raises(InputError, match="damaged kvtrie snapshot"):
        Snapshot.from_json(json.dumps(document))


def test_an_unknown_field_of_a_node_is_refused(picture: Snapshot) -> None:
    document = json.loads(picture.to_json())
    document["nodes"][0]["surprise"] = 1
    with pytest.raises(InputError, match="surprise"):
        Snapshot.from_json(json.dumps(document))
