"""Claims: one chunk is computed once, whatever becomes of the one who computes it."""

from __future__ import annotations

import pytest

from kvtrie.prefix_tree import check

DEVICE, HOST = 0, 1


def begin(forest, scope: str, tokens, readable=()):
    match = forest.match(scope, tokens, readable)
    return forest.tree.lease(match), forest.tree.claim(match, forest.bytes(tokens))


def publish(forest, lease, claim, handle: str = "mine"):
    node = forest.tree.publish(claim, DEVICE, handle, 1)
    forest.tree.extend(lease, node)
    check(forest.tree)
    return node


def test_the_first_computes_and_others_wait(forest) -> None:
    lease, claim = begin(forest, "a", [1, 2, 3, 4, 5])
    check(forest.tree)
    assert [node.depth for node in claim.nodes] == [1, 2]
    waiter = forest.match("a", [1, 2, 3, 4, 5])
    assert waiter.cached_tokens == 0
    assert waiter.awaits is claim.nodes[1]
    assert forest.match("a", [1, 2, 9]).awaits is claim.nodes[0]
    assert forest.match("a", [1, 9]).awaits is None
    assert forest.match("b", [1, 2, 3, 4, 5]).awaits is None
    with pytest.raises(AssertionError, match="must wait claims nothing"):
        forest.tree.claim(waiter, forest.bytes([1, 2]))
    first = publish(forest, lease, claim)
    waiter = forest.match("a", [1, 2, 3, 4, 5])
    assert waiter.path == [first]
    assert waiter.awaits is claim.nodes[0]
    second = publish(forest, lease, claim)
    assert forest.match("a", [1, 2, 3, 4, 5]).path == [first, second]
    assert forest.match("a", [1, 2, 3, 4, 5]).awaits is None


@pytest.mark.parametrize("pending", [False, True])
def test_a_last_chunk_that_is_there_already_is_not_claimed(forest, pending: bool) -> None:
    """Requests look up all tokens but the last, so the match ends one chunk short of it."""
    if pending:
        begin(forest, "a", [1, 2])
    else:
        forest.store("a", [1, 2])
    claim = forest.tree.claim(forest.match("a", [1]), forest.bytes([1, 2]))
    assert claim.nodes == []
    check(forest.tree)


def test_pending_chunks_lend_no_tokens_and_occupy_no_bytes(forest) -> None:
    begin(forest, "a", [1, 2, 3, 4])
    assert forest.cached("a", [1, 3]) == 0
    assert forest.tree.tiers[DEVICE].used_bytes == 0
    assert forest.evict(DEVICE, 99) == []


def test_an_abandoned_claim_passes_to_the_next_and_what_was_published_stays(forest) -> None:
    lease, claim = begin(forest, "a", [1, 2, 3, 4, 5, 6])
    first = publish(forest, lease, claim)
    forest.tree.abandon(claim)
    forest.tree.release(lease)
    check(forest.tree)
    waiter = forest.match("a", [1, 2, 3, 4, 5, 6])
    assert waiter.path == [first]
    assert waiter.awaits is None
    heir = forest.tree.claim(waiter, forest.bytes([1, 2, 3, 4, 5, 6]))
    assert [node.depth for node in heir.nodes] == [2, 3]
    forest.tree.abandon(claim)
    assert forest.match("a", [1, 2, 3, 4, 5, 6]).awaits is heir.nodes[1]


def test_a_chunk_stored_by_somebody_else_meanwhile_keeps_their_handle(forest) -> None:
    lease, claim = begin(forest, "a", [1, 2, 3, 4])
    stored = forest.store("a", [1, 2])
    assert forest.match("a", [1, 2, 3, 4]).path == stored
    node = publish(forest, lease, claim, "mine")
    assert node is stored[0]
    assert node.at[DEVICE].handle == "0:0+0"
    assert publish(forest, lease, claim, "mine").at[DEVICE].handle == "mine"


def test_a_claimed_chunk_that_came_and_went_is_pending_again(forest) -> None:
    """Somebody else stores the first of two claimed chunks, and it is evicted before its claimant got there."""
    lease, claim = begin(forest, "a", [1, 2, 3, 4])
    (stored,) = forest.store("a", [1, 2])
    assert forest.evict(DEVICE, 1) == [stored]
    check(forest.tree)
    waiter = forest.match("a", [1, 2, 3, 4])
    assert waiter.path == []
    assert waiter.awaits is claim.nodes[1]
    path = [publish(forest, lease, claim), publish(forest, lease, claim)]
    assert forest.match("a", [1, 2, 3, 4]).path == path


def test_claimed_chunks_that_all_came_and_went_are_published_all_the_same(forest) -> None:
    lease, claim = begin(forest, "a", [1, 2, 3, 4])
    forest.store("a", [1, 2, 3, 4])
    forest.evict(DEVICE, 2)
    assert len(forest.tree) == 0
    path = [publish(forest, lease, claim), publish(forest, lease, claim)]
    assert forest.match("a", [1, 2, 3, 4]).path == path


@pytest.mark.parametrize("stored", [[1, 2], [1, 2, 3, 4]])
def test_abandoning_after_others_stored_and_lost_the_chunks_leaves_nothing(forest, stored) -> None:
    _, claim = begin(forest, "a", [1, 2, 3, 4])
    forest.store("a", stored)
    forest.evict(DEVICE, 99)
    forest.tree.abandon(claim)
    check(forest.tree)
    assert len(forest.tree) == 0


def test_what_is_being_computed_is_awaited_whatever_else_is_cached(forest) -> None:
    """The shared scope lends one more token now; the tenant's own pending chunk will give two."""
    forest.store("s", [1, 2, 3, 9])
    begin(forest, "a", [1, 2, 3, 4], ["s"])
    again = forest.match("a", [1, 2, 3, 4], ["s"])
    assert again.cached_tokens == 3
    assert again.awaits is not None
    assert again.awaits.root is forest.root("a")


def test_a_pending_chunk_another_way_has_already_is_not_awaited(forest) -> None:
    begin(forest, "a", [1, 2])
    forest.store("s", [1, 2, 3, 4])
    match = forest.match("a", [1, 2, 3, 4], ["s"])
    assert match.cached_tokens == 4
    assert match.awaits is None


def test_tenants_wait_for_the_shared_scope(forest) -> None:
    lease, claim = begin(forest, "s", [1, 2])
    assert forest.match("a", [1, 2], ["s"]).awaits is claim.nodes[0]
    node = publish(forest, lease, claim)
    assert forest.match("a", [1, 2], ["s"]).path == [node]
