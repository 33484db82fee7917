"""Tenants share nothing unless a shared scope says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from transformers import PreTrainedModel

from kvtrie.api import Completion, PrefixCachedModel
from kvtrie.prefix_tree import InputError, Node
from tests.api.balance import CHUNK, assert_same, complete, wrapped
from tests.api.tiny_models import prompts, tiny_model

SYSTEM = prompts([5 * CHUNK])[0]
PROMPT = [*SYSTEM, *prompts([2 * CHUNK + 3], seed=2)[0]]
WHOLE = 7 * CHUNK
"""Tokens of the prompt in whole chunks: what can be stored of it."""


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama-gqa")


@pytest.fixture
def cached(model: PreTrainedModel) -> Iterator[PrefixCachedModel]:
    with wrapped(model, chunks=128, shared={"tools": ["acme", "globex"], "all": ["*"]}) as wrapper:
        yield wrapper


def ask(cached: PrefixCachedModel, tenant: str | None, row: list[int]) -> Completion:
    (completion,) = complete(cached, row, tenant=tenant)
    assert_same(cached.model, completion)
    return completion


def nodes(cached: PrefixCachedModel, scope: str) -> list[Node]:
    return [node for node in cached.engine.memory.tree.walk() if node.root.scope == scope]


def test_two_tenants_with_one_prompt_share_nothing(cached: PrefixCachedModel) -> None:
    for tenant in "initech", "hooli", None:
        assert ask(cached, tenant, PROMPT).cached_tokens == 0
        assert ask(cached, tenant, PROMPT).cached_tokens == WHOLE
    stored = [nodes(cached, f"tenant:{tenant}") for tenant in ("initech", "hooli", "default")]
    assert [len(part) for part in stored] == [len(PROMPT) // CHUNK] * 3
    keys = [{node.key for node in part} for part in stored]
    assert not keys[0] & keys[1], "not even keys are equal"
    slots = [{node.at[0].handle for node in part if node.at[0]} for part in stored]
    assert not slots[0] & slots[1]
    assert not slots[0] & slots[2]


def test_tenants_that_ask_together_do_not_wait_for_each_other(cached: PrefixCachedModel) -> None:
    first = cached.submit(PROMPT, tenant="initech", max_new_tokens=1, eos=())
    second = cached.submit(PROMPT, tenant="hooli", max_new_tokens=1, eos=())
    cached.engine.step()
    assert first.done
    assert second.done
    assert first.cached_tokens == second.cached_tokens == 0


def test_generate_and_stream_keep_to_their_tenant(cached: PrefixCachedModel) -> None:
    list(cached.stream(PROMPT, tenant="initech", max_new_tokens=1, eos=()))
    before = cached.stats()["cached_tokens"]
    list(cached.stream(PROMPT, tenant="hooli", max_new_tokens=1, eos=()))
    assert cached.stats()["cached_tokens"] == before
    warmed = cached.warm(PROMPT, tenant="umbrella")
    assert warmed.cached_tokens == 0


def test_readers_of_a_warmed_scope_hit_and_others_do_not(cached: PrefixCachedModel) -> None:
    warmed = cached.warm(SYSTEM, scope="tools")
    assert (warmed.cached_tokens, warmed.stored_tokens) == (0, len(SYSTEM))
    assert ask(cached, "acme", PROMPT).cached_tokens == len(SYSTEM)
    assert ask(cached, "globex", PROMPT).cached_tokens == len(SYSTEM)
    assert ask(cached, "initech", PROMPT).cached_tokens == 0
    assert ask(cached, None, PROMPT).cached_tokens == 0
    assert len(nodes(cached, "shared:tools")) == len(SYSTEM) // CHUNK
    # What the readers hold of their own are the continuations.
    assert len(nodes(cached, "tenant:acme")) == len(PROMPT) // CHUNK - len(SYSTEM) // CHUNK


def test_a_scope_of_everybody_s(cached: PrefixCachedModel) -> None:
    cached.warm(SYSTEM, scope="all")
    for tenant in "acme", "initech", None:
        assert ask(cached, tenant, PROMPT).cached_tokens == len(SYSTEM)


def test_continuations_of_a_shared_path_are_their_tenant_s(cached: PrefixCachedModel) -> None:
    cached.warm(SYSTEM, scope="tools")
    ask(cached, "acme", PROMPT)
    assert ask(cached, "acme", PROMPT).cached_tokens == WHOLE
    assert ask(cached, "globex", PROMPT).cached_tokens == len(SYSTEM), "acme's continuation is acme's"
    assert ask(cached, "globex", PROMPT).cached_tokens == WHOLE
    grafts = nodes(cached, "tenant:acme")
    assert grafts[0].parent is nodes(cached, "shared:tools")[-1]


def test_what_a_tenant_had_before_the_scope_was_warmed_stays_usable(cached: PrefixCachedModel) -> None:
    ask(cached, "acme", PROMPT)
    cached.warm(SYSTEM, scope="tools")
    assert ask(cached, "acme", PROMPT).cached_tokens == WHOLE
    assert ask(cached, "globex", PROMPT).cached_tokens == len(SYSTEM)


def test_evicted_grafts_and_shared_paths(model: PreTrainedModel) -> None:
    """Continuations of a shared path go before it does, and come back right."""
    with wrapped(model, chunks=9, shared={"tools": ["*"]}) as cached:
        cached.warm(SYSTEM, scope="tools", pin=True)
        for tenant in "acme", "globex", "initech", "acme":
            assert ask(cached, tenant, PROMPT).cached_tokens == len(SYSTEM)
        assert cached.stats()["evictions"] > 0
        assert len(nodes(cached, "shared:tools")) == len(SYSTEM) // CHUNK


def test_bytes_are_booked_to_whoever_stored_them(cached: PrefixCachedModel) -> None:
    cached.warm(SYSTEM, scope="tools")
    ask(cached, "acme", PROMPT)
    size = cached.engine.memory.shape.chunk_bytes
    booked = cached.stats()["device"]["scopes"]
    assert booked["shared:tools"]["used_bytes"] == len(SYSTEM) // CHUNK * size
    assert booked["tenant:acme"]["used_bytes"] == 2 * size


def test_names_cannot_pose_as_each_other(cached: PrefixCachedModel) -> None:
    for tenant in "shared:tools", "tenant:acme", "", "a\nb":
        with pytest.raises(InputError, match="tenant name"):
            cached.submit(PROMPT, tenant=tenant)
    # A tenant that is called like the scope is not the scope.
    cached.warm(SYSTEM, scope="tools")
    assert ask(cached, "tools", PROMPT).cached_tokens == 0


def test_salts_make_keys_that_cannot_be_guessed(model: PreTrainedModel) -> None:
    seen: list[set[bytes]] = []
    for salt in "", "first secret", "second secret", "first secret":
        with wrapped(model, salt=salt) as cached:
            ask(cached, "acme", PROMPT)
            seen.append({node.key for node in nodes(cached, "tenant:acme")})
            assert salt not in cached.take_snapshot().to_json() or not salt
    assert seen[1] == seen[3]
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]


def test_processes_with_other_salts_share_nothing_through_a_store(model: PreTrainedModel) -> None:
    from kvtrie.api.tiers.store_tier import StoreTier
    from kvtrie.store import MemoryStore

    class Kept(MemoryStore):
        def close(self) -> None:
            """Outlives the wrappers."""

    store = Kept()
    found = []
    for salt in "one", "two", "one":
        with wrapped(model, salt=salt, store=StoreTier(store)) as cached:
            found.append(ask(cached, "acme", PROMPT).cached_tokens)
            assert cached.flush()
    assert found == [0, 0, WHOLE]
