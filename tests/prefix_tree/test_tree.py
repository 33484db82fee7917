"""What the tree finds, shares, stores and gives up, one behaviour at a time."""

from __future__ import annotations

import itertools
import random
import sys

import pytest
from xxhash import xxh3_128_digest

from kvtrie.prefix_tree import InputError, Match, Namespace, PrefixTree, Tier, check, take_snapshot

DEVICE, HOST = 0, 1


def state(forest) -> object:
    """Everything a lookup could possibly disturb."""
    nodes = [
        (n.key, n.hits, n.last_used_at, [r and (r.last_use, r.holds) for r in n.at])
        for n in forest.tree.walk()
    ]
    return nodes, forest.tree._holds.tick, dict(forest.tree._index), len(forest.tree.tiers[DEVICE].policy)


def test_match_counts_whole_chunks_and_the_partial_one(forest) -> None:
    path = forest.store("a", [1, 2, 3, 4, 5, 6])
    match = forest.match("a", [1, 2, 3, 4, 5, 7])
    assert (match.path, match.tokens) == (path[:2], 4)
    assert (match.partial, match.partial_tokens) == (path[2], 1)
    assert match.cached_tokens == 5
    assert match.node is path[1]
    assert match.chain_key == path[1].key
    assert match.awaits is None


def test_every_length_of_a_stored_prompt_matches_exactly_that_length(forest) -> None:
    tokens = [5, 6, 7, 8, 9, 10]
    forest.store("a", tokens)
    assert [forest.cached("a", tokens[:end]) for end in range(7)] == list(range(7))


def test_a_prompt_nobody_stored_matches_nothing(forest) -> None:
    forest.store("a", [1, 2])
    match = forest.match("a", [9, 9])
    assert match.cached_tokens == 0
    assert match.node is match.root is forest.root("a")
    assert match.partial is None
    assert match.chain_key == forest.root("a").key


def test_match_changes_nothing(forest) -> None:
    forest.store("s", [1, 2, 3, 4])
    forest.store("a", [1, 2, 3, 4, 5, 6], ["s"])
    before = state(forest)
    forest.now += 5
    for end in range(7):
        forest.match("a", [1, 2, 3, 4, 5, 6][:end], ["s"])
    assert state(forest) == before


# ---- exactness


def test_a_key_that_leads_to_other_tokens_is_no_hit(forest) -> None:
    first, other = forest.store("a", [1, 2]) + forest.store("a", [3, 4])
    forest.tree._index[first.key] = other
    assert forest.match("a", [1, 2]).path == [first]
    forest.tree._index[forest.tree.next_key(forest.root("a").key, forest.bytes([7, 8]))] = other
    assert forest.cached("a", [7, 8]) == 0


def test_a_key_that_leads_elsewhere_in_the_tree_is_no_hit(forest) -> None:
    """The right tokens below another parent, or in another tenant's namespace, are not this chunk."""
    deep = forest.store("a", [9, 9, 1, 2])[1]
    foreign = forest.store("b", [1, 2])[0]
    for wrong in (deep, foreign):
        forest.tree._index[forest.tree.next_key(forest.root("a").key, forest.bytes([1, 2]))] = wrong
        assert forest.cached("a", [1, 2]) == 0


def test_one_key_for_everything_costs_speed_only(make_forest) -> None:
    forest = make_forest(digest=lambda data: b"same")
    stored = [list(p) for p in itertools.product((1, 2, 3), repeat=4)][::2]
    for tokens in stored:
        forest.store("a", tokens)
    check(forest.tree)
    for tokens in itertools.product((1, 2, 3), repeat=4):
        longest = max(next((i for i in range(4) if tokens[i] != other[i]), 4) for other in stored)
        assert forest.cached("a", tokens) == longest
    forest.evict(DEVICE, 1_000)
    assert len(forest.tree) == 0
    assert not forest.tree._index


def test_colliding_continuations_of_two_tenants_stay_apart(make_forest) -> None:
    forest = make_forest(digest=lambda data: data[-8:])
    forest.store("s", [1, 2])
    theirs = forest.store("b", [1, 2, 3, 4], ["s"])
    mine = forest.store("a", [1, 2, 3, 4], ["s"])
    assert mine[1] is not theirs[1]
    assert forest.match("a", [1, 2, 3, 4], ["s"]).path == mine
    assert forest.match("b", [1, 2, 3, 4], ["s"]).path == theirs


def test_a_collided_sibling_is_still_found_after_the_indexed_one_has_gone(make_forest) -> None:
    forest = make_forest(digest=lambda data: b"same")
    forest.store("a", [1, 2])
    forest.store("a", [3, 4])
    assert forest.cached("a", [1, 2]) == 2
    assert [node.tokens for node in forest.evict(DEVICE, 1)] == [forest.bytes([1, 2])]
    assert forest.cached("a", [1, 2]) == 0
    assert forest.cached("a", [3, 4]) == 2


# ---- scopes


def test_tenants_with_the_same_prompt_share_nothing(forest) -> None:
    (mine,) = forest.store("a", [1, 2])
    assert forest.cached("b", [1, 2]) == 0
    assert forest.cached("b", [1]) == 0
    (theirs,) = forest.store("b", [1, 2])
    assert mine is not theirs
    assert mine.key != theirs.key
    assert forest.match("b", [1, 2], ["s"]).path == [theirs]


def test_a_shared_scope_serves_those_who_may_read_it(forest) -> None:
    path = forest.store("s", [1, 2, 3, 4])
    assert forest.match("a", [1, 2, 3, 4], ["s"]).path == path
    assert forest.match("a", [1, 2, 3, 9], ["s"]).partial is path[1]
    assert forest.cached("a", [1, 2, 3, 4]) == 0
    assert forest.cached("a", [1, 2, 3, 4], ["u"]) == 0


def test_a_tenants_continuation_of_a_shared_path_is_its_own(forest) -> None:
    shared = forest.store("s", [1, 2])
    mine = forest.store("a", [1, 2, 3, 4, 5, 6], ["s"])
    check(forest.tree)
    assert mine[0] is shared[0]
    assert [node.root.scope for node in mine] == ["s", "a", "a"]
    assert mine[1].parent is shared[0]
    assert forest.match("a", [1, 2, 3, 4, 5, 6], ["s"]).path == mine
    assert forest.cached("a", [1, 2, 3, 4, 5, 9], ["s"]) == 5
    assert forest.cached("b", [1, 2, 3, 4], ["s"]) == 2
    assert forest.cached("s", [1, 2, 3, 4]) == 2
    assert forest.cached("a", [1, 2, 3, 4]) == 0
    assert forest.tree.tiers[DEVICE].scopes["s"].used_bytes == 1
    assert forest.tree.tiers[DEVICE].scopes["a"].used_bytes == 2


def test_the_longest_of_own_and_shared_paths_wins(forest) -> None:
    own = forest.store("a", [1, 2, 3, 4])
    long = forest.store("s", [1, 2, 3, 4, 5, 6])
    assert forest.match("a", [1, 2, 3, 4], ["s"]).path == own
    assert forest.match("a", [1, 2, 3, 4, 5, 6], ["s"]).path == long
    assert forest.match("a", [1, 2, 3, 4, 5, 9], ["s"]).path == long[:2]
    assert forest.match("a", [1, 2, 3, 4, 9, 9], ["s"]).path == own


def test_new_chunks_chain_in_the_tenants_own_namespace(forest) -> None:
    """Also where a shared scope lends a part of the very first chunk, and no whole one."""
    forest.store("s", [1, 2, 3, 4])
    root = forest.root("a")
    for tokens in ([1, 9, 8, 7], [1, 2, 3, 9], [1, 2, 3, 4]):
        match = forest.match("a", tokens, ["s"])
        assert match.partial_tokens or match.path
        assert match.root is root
        assert match.chain_key == forest.tree.chain_key(root.key, forest.bytes(tokens), len(match.path))
    stored = forest.store("a", [1, 9, 8, 7], ["s"])
    check(forest.tree)
    assert stored[0].parent is root


# ---- storing


def test_storing_twice_returns_the_first_node_and_keeps_its_handle(forest) -> None:
    (first,) = forest.store("a", [1, 2])
    again = forest.tree.insert(forest.root("a"), forest.root("a"), first.key, first.tokens, DEVICE, "late", 1)
    assert again is first
    assert first.at[DEVICE].handle == "0:0+0"
    assert forest.tree.tiers[DEVICE].used_bytes == 1
    stale = Match(forest.root("a"), [], forest.root("a").key, 0, None, 0, None)
    nodes = forest.tree.insert_path(stale, forest.bytes([1, 2, 3, 4]), DEVICE, ["late", "new"], 1)
    assert nodes[0] is first
    assert [node.at[DEVICE].handle for node in nodes] == ["0:0+0", "new"]
    check(forest.tree)


def test_a_tier_takes_no_chunk_without_the_one_above(forest) -> None:
    parent, child = forest.store("a", [1, 2, 3, 4])
    with pytest.raises(AssertionError, match="prefix-closed"):
        forest.copy(child, HOST)
    forest.copy(parent, HOST)
    forest.copy(child, HOST)
    check(forest.tree)


def test_roots_are_made_once_and_listed_oldest_first(forest) -> None:
    roots = [forest.root(scope) for scope in ("c", "a", "b")]
    assert forest.root("a") is roots[1]
    assert forest.tree.roots() == roots


def test_walk_is_depth_first_in_token_order(forest) -> None:
    for tokens in ([3, 3, 1, 1], [1, 1, 2, 2], [1, 1, 1, 1], [256, 0]):
        forest.store("a", tokens)
    chunks = [node.tokens for node in forest.tree.walk()]
    expected = [[256, 0], [1, 1], [1, 1], [2, 2], [3, 3], [1, 1]]
    assert chunks == [forest.bytes(tokens) for tokens in expected]
    assert len(forest.tree) == 6


@pytest.mark.parametrize("chunk_tokens", [0, -1])
def test_chunks_have_at_least_one_token(chunk_tokens: int) -> None:
    with pytest.raises(InputError, match=f"chunk_tokens must be at least 1, got {chunk_tokens}"):
        PrefixTree(chunk_tokens, [Tier("device", 1)])


def test_a_tree_has_at_least_one_tier() -> None:
    with pytest.raises(InputError, match="at least one tier"):
        PrefixTree(1, [])


# ---- giving up


def test_the_least_recently_used_leaf_goes_first(forest) -> None:
    nodes = [forest.store("a", [n, n])[0] for n in (1, 2, 3, 4)]
    forest.tree.release(forest.tree.lease(forest.match("a", [1, 1])))
    assert forest.evict(DEVICE, 2) == [nodes[1], nodes[2]]
    assert forest.evict(DEVICE, 9) == [nodes[3], nodes[0]]
    assert forest.evict(DEVICE, 1) == []


def test_an_ancestor_was_last_used_when_its_last_descendant_was(forest) -> None:
    """[1 1] itself is older than [2 2], but its child, which goes first, was used after both."""
    parent, child = forest.store("a", [1, 1, 5, 5])
    (other,) = forest.store("a", [2, 2])
    pin = forest.tree.pin(other)
    forest.now += 10
    forest.tree.release(forest.tree.lease_node(child))
    assert parent.last_used_at == 1000
    assert forest.evict(DEVICE, 1) == [child]
    assert parent.last_used_at == 1010
    forest.tree.unpin(pin)
    assert forest.evict(DEVICE, 2) == [other, parent]
    assert forest.root("a").last_used_at == 1010


def test_evict_frees_at_least_what_was_asked_and_no_more_leaves_than_that(forest) -> None:
    small = forest.store("a", [1, 1], size_bytes=2)
    large = forest.store("a", [2, 2], size_bytes=5)
    forest.store("a", [3, 3], size_bytes=1)
    gone = forest.tree.evict(DEVICE, 3, "asked")
    assert [(e.node, e.handle, e.size_bytes) for e in gone] == [
        (small[0], "0:0+0", 2),
        (large[0], "0:0+0", 5),
    ]
    assert forest.tree.evictions == {"asked": 2}
    assert forest.tree.evict(DEVICE, 0) == []


def test_a_leaf_left_in_the_host_lets_its_device_parent_go(forest) -> None:
    parent, child = forest.store("a", [1, 2, 3, 4])
    forest.copy(parent, HOST)
    forest.copy(child, HOST)
    assert forest.evict(DEVICE, 1) == [child]
    assert parent.at[DEVICE].evictable
    assert not parent.at[HOST].evictable
    assert forest.match("a", [1, 2, 3, 4]).path == [parent, child]
    assert forest.evict(DEVICE, 9) == [parent]
    assert forest.match("a", [1, 2, 3, 4]).path == [parent, child]
    assert forest.evict(HOST, 9) == [child, parent]
    assert len(forest.tree) == 0


def test_use_of_a_demoted_leaf_is_use_of_the_path_above_it_on_the_device(forest) -> None:
    parent, child = forest.store("a", [1, 2, 3, 4])
    forest.copy(parent, HOST)
    forest.copy(child, HOST)
    assert forest.evict(DEVICE, 1) == [child]
    (other,) = forest.store("a", [8, 8])
    forest.tree.release(forest.tree.lease_node(child))
    assert forest.evict(DEVICE, 1) == [other]


def test_an_evicted_leaf_leaves_its_hits_above(forest) -> None:
    parent, child = forest.store("a", [1, 2, 3, 4])
    for tokens in ([1, 2, 3, 4], [1, 2, 3], [1, 2], [9]):
        forest.tree.release(forest.tree.lease(forest.match("a", tokens)))
    assert (parent.hits, child.hits) == (1, 2)
    forest.evict(DEVICE, 1)
    assert parent.hits == 3


def test_bytes_are_accounted_per_scope_and_empty_scopes_forgotten(forest) -> None:
    tier = forest.tree.tiers[DEVICE]
    forest.store("s", [1, 2], size_bytes=5)
    forest.store("a", [1, 2, 3, 4], ["s"], size_bytes=3)
    tier.reserve("b", 10)
    assert {s: (b.used_bytes, b.pending_bytes) for s, b in tier.scopes.items()} == {
        "s": (5, 0), "a": (3, 0), "b": (0, 10),
    }  # fmt: skip
    assert (tier.used_bytes, tier.pending_bytes, tier.free_bytes, tier.chunks) == (8, 10, 982, 2)
    tier.unreserve("b", 10)
    forest.evict(DEVICE, 1)
    assert set(tier.scopes) == {"s"}
    forest.evict(DEVICE, 1)
    assert tier.scopes == {}
    assert tier.free_bytes == tier.capacity_bytes


def test_a_tier_never_books_more_than_it_has() -> None:
    tier = Tier("device", 10)
    tier.reserve("a", 10)
    with pytest.raises(AssertionError):
        tier.reserve("a", 1)
    with pytest.raises(AssertionError):
        tier.unreserve("a", 11)


def test_a_full_tier_takes_no_chunk(make_forest) -> None:
    forest = make_forest(capacity_bytes=1)
    forest.tree.tiers[DEVICE].reserve("a", 1)
    with pytest.raises(AssertionError):
        forest.store("a", [1, 2])


# ---- size


def test_the_best_partial_match_among_ten_thousand_children(make_forest) -> None:
    """With half of the children only pending: they lend nothing."""
    rng = random.Random(7)
    forest = make_forest(chunk_tokens=4, capacity_bytes=100_000)
    alphabet = (0, 1, 2, 255, 256, 257, 65536, 2**31 - 1, 77, 1000, 3)
    chunks = rng.sample(list(itertools.product(alphabet, repeat=4)), 10_000)
    for number, chunk in enumerate(chunks):
        match = forest.match("a", chunk)
        if number % 2:
            forest.tree.claim(match, forest.bytes(chunk))
        else:
            forest.tree.insert_path(match, forest.bytes(chunk), DEVICE, [number], 1)
    stored = {chunk[:length] for chunk in chunks[::2] for length in range(5)}
    whole = partial = 0
    for _ in range(500):
        prompt = tuple(rng.choice((*alphabet, 5)) for _ in range(rng.randint(1, 5)))
        longest = max(length for length in range(min(len(prompt), 4) + 1) if prompt[:length] in stored)
        match = forest.match("a", prompt)
        assert match.cached_tokens == longest
        assert match.partial is None or match.partial.is_resident
        whole += longest == 4
        partial += longest in (1, 2, 3)
    assert whole > 10
    assert partial > 100


def test_depth_has_no_limit(make_forest) -> None:
    chunks = 10_000
    assert chunks > sys.getrecursionlimit()
    forest = make_forest(chunk_tokens=1, capacity_bytes=10 * chunks)
    tokens = [n % 5 for n in range(chunks)]
    path = forest.store("a", tokens)
    assert forest.match("a", [*tokens, 3]).path == path
    assert [node.depth for node in forest.tree.walk()] == list(range(1, chunks + 1))
    assert path[-1].path() == path
    lease = forest.tree.lease(forest.match("a", tokens))
    picture = take_snapshot(forest.tree, "engine")
    assert [view.readers for view in picture.nodes] == [1] * chunks
    assert type(picture).from_json(picture.to_json()) == picture
    assert forest.evict(DEVICE, 1) == []
    forest.tree.release(lease)
    assert forest.evict(DEVICE, chunks - 1) == path[:0:-1]
    check(forest.tree)
    assert len(forest.tree) == 1


def test_the_default_digest_is_xxh3_128() -> None:
    tree = PrefixTree(1, [Tier("device", 1)])
    root = tree.root(Namespace("a", chunk_tokens=1))
    assert tree.next_key(root.key, b"1234") == xxh3_128_digest(root.key + b"1234")
