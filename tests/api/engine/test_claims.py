"""One chunk, computed once: claims, those who wait for them, and whoever takes over when a claimant goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from kvtrie.api import Completion, EngineConfig, PrefixCachedModel
from kvtrie.api.models.model_runner import ModelRunner
from kvtrie.prefix_tree.errors import ModelOutputError
from tests.api.balance import (
    CHUNK,
    assert_balanced,
    assert_same,
    chunk_bytes,
    complete,
    greedy,
    run_to_the_end,
    wrapped,
)
from tests.api.tiny_models import left_padded, prompts, tiny_model

SHARED = 5 * CHUNK
NEW = 4


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama-gqa")


@pytest.fixture
def rows_computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every forward pass from here on; those of wrapping a model are among them."""
    counts: list[int] = []
    forward = ModelRunner.forward

    def counted(self: ModelRunner, tokens: list[int], *arguments: Any) -> torch.Tensor:
        counts.append(len(tokens))
        return forward(self, tokens, *arguments)

    monkeypatch.setattr(ModelRunner, "forward", counted)
    return counts


@pytest.fixture
def failing(model: PreTrainedModel) -> Iterator[Callable[[], None]]:
    """Makes the next forward pass raise in its last layer."""
    left = 0

    def fail(*_: Any) -> None:
        nonlocal left
        if left:
            left -= 1
            raise RuntimeError("a broken layer")

    def arm() -> None:
        nonlocal left
        left = 1

    hook = model.model.layers[-1].register_forward_pre_hook(fail)
    yield arm
    hook.remove()


def claimant_and_waiters(cached: PrefixCachedModel, waiters: int = 3, **sizes: int) -> list[Completion]:
    """Requests with one uncached prefix, after the first step: the first of them has claimed it."""
    rows = prompts([SHARED + 3 + i for i in range(waiters + 1)], shared=SHARED, **sizes)
    completions = [cached.submit(row, max_new_tokens=NEW, eos=()) for row in rows]
    cached.engine.step()
    return completions


def test_a_prefix_asked_for_by_many_at_once_is_computed_once(
    model: PreTrainedModel, rows_computed: list[int]
) -> None:
    rows = prompts([SHARED + 3 + i for i in range(8)], shared=SHARED)
    with wrapped(model, chunks=100) as cached:
        rows_computed.clear()
        completions = complete(cached, *rows, new=NEW)
        for completion in completions:
            assert_same(model, completion)
        own = sum(len(row) - SHARED for row in rows)
        # Each later token costs a row; the first comes with the prompt's last row.
        assert sum(rows_computed) == SHARED + own + len(rows) * (NEW - 1)
        assert completions[0].cached_tokens == 0
        assert [completion.cached_tokens for completion in completions[1:]] == [SHARED] * 7


def test_generate_computes_a_batch_s_shared_prefix_once(
    model: PreTrainedModel, rows_computed: list[int]
) -> None:
    rows = prompts([SHARED + 3 + i for i in range(6)], shared=SHARED)
    with wrapped(model, chunks=100) as cached:
        rows_computed.clear()
        cached.generate(**left_padded(rows), max_new_tokens=2)
    # The last token of each row is left to transformers' own loop.
    assert sum(rows_computed) == SHARED + sum(len(row) - 1 - SHARED for row in rows)


def test_a_prompt_of_whole_chunks_is_stored_once(model: PreTrainedModel) -> None:
    """A match leaves the last token out, and with it a last chunk that is there already."""
    rows = prompts([SHARED, SHARED], shared=SHARED)
    with wrapped(model) as cached:
        for _ in range(3):
            for completion in complete(cached, *rows, new=1):
                assert_same(model, completion)
            assert cached.stats()["device"]["chunks"] == SHARED // CHUNK


def test_waiters_hold_no_slots(model: PreTrainedModel) -> None:
    with wrapped(model, engine=EngineConfig(step_tokens=CHUNK)) as cached:
        claimant, *waiters = claimant_and_waiters(cached)
        memory = cached.engine.memory
        while claimant.first_token_at is None:
            # What the claimant has computed, and at most one chunk that it is filling.
            taken = memory.pool.slots - memory.pool.free_slots.free
            assert taken <= memory.tree.tiers[0].chunks + 1
            assert len(memory.tree.leases) == 1
            assert not any(waiter.tokens for waiter in waiters)
            cached.engine.step()
        run_to_the_end(cached)
        for completion in (claimant, *waiters):
            assert_same(model, completion)


def test_waiters_are_served_chunk_by_chunk_as_they_are_published(model: PreTrainedModel) -> None:
    """One that shares only the first chunk does not wait for the claimant's last one."""
    with wrapped(model, engine=EngineConfig(step_tokens=CHUNK)) as cached:
        (long,) = prompts([10 * CHUNK])
        claimant = cached.submit(long, max_new_tokens=NEW, eos=())
        short = cached.submit([*long[:CHUNK], 7, 8, 9], max_new_tokens=1, eos=())
        for _ in range(3):
            cached.engine.step()
        running = len(cached.engine.memory.tree.leases)
        assert running == 2, "it was admitted while the claimant was still at it"
        run_to_the_end(cached)
        assert_same(model, claimant)
        assert_same(model, short)


def test_a_cancelled_claimant_hands_over(model: PreTrainedModel, rows_computed: list[int]) -> None:
    with wrapped(model, engine=EngineConfig(step_tokens=CHUNK)) as cached:
        rows_computed.clear()
        claimant, *waiters = claimant_and_waiters(cached)
        cached.engine.step()
        claimant.cancel()
        run_to_the_end(cached)
        assert claimant.finish_reason == "cancelled"
        for waiter in waiters:
            assert_same(model, waiter)
        # What the claimant had published was taken over, not computed again.
        assert sum(rows_computed) == SHARED + 4 + 5 + 6 + len(waiters) * (NEW - 1)
        assert waiters[0].cached_tokens == 2 * CHUNK


def test_cancelled_waiters_leave_the_others_waiting(model: PreTrainedModel) -> None:
    with wrapped(model, engine=EngineConfig(step_tokens=CHUNK)) as cached:
        claimant, first, second, third = claimant_and_waiters(cached)
        first.cancel()
        third.cancel()
        run_to_the_end(cached)
        assert first.finish_reason == third.finish_reason == "cancelled"
        assert_same(model, claimant)
        assert_same(model, second)


def test_a_claimant_whose_model_raises_hands_over(
    model: PreTrainedModel, failing: Callable[[], None]
) -> None:
    with wrapped(model, engine=EngineConfig(step_tokens=2 * CHUNK)) as cached:
        claimant, *waiters = claimant_and_waiters(cached)
        failing()
        cached.engine.step()
        assert isinstance(claimant.error, RuntimeError)
        run_to_the_end(cached)
        for waiter in waiters:
            assert_same(model, waiter)
        assert waiters[0].cached_tokens == 2 * CHUNK


def test_a_claimant_that_yields_nan_hands_over(model: PreTrainedModel) -> None:
    """Only the claimant's own tokens are poisoned: waiters must be served in spite of it."""
    weight = model.model.embed_tokens.weight
    row, *others = prompts([SHARED + 6] * 4, shared=SHARED)
    (bad,) = {*range(3, 200)} - {token for tokens in (row, *others) for token in tokens} and {201}
    row = [*row[: SHARED + 2], bad]
    others = [[token if token != bad else 5 for token in other] for other in others]
    kept = weight.detach()[bad].clone()
    with torch.no_grad():
        weight[bad] = float("nan")
    try:
        with wrapped(model) as cached:
            completions = complete(cached, row, *others, new=1)
            assert isinstance(completions[0].error, ModelOutputError)
            for completion in completions[1:]:
                assert_same(model, completion)
            assert completions[1].cached_tokens == 0, "nothing of the failed pass was kept"
    finally:
        with torch.no_grad():
            weight[bad] = kept


def test_a_failed_batch_of_generate_gives_everything_back(
    model: PreTrainedModel, failing: Callable[[], None]
) -> None:
    batch = left_padded(prompts([SHARED + 3, SHARED + 9, 30], shared=SHARED))
    with wrapped(model) as cached:
        for _ in range(2):
            failing()
            with pytest.raises(RuntimeError, match="a broken layer"):
                cached.generate(**batch, max_new_tokens=NEW)
            assert_balanced(cached)
        expected = model.generate(**batch, max_new_tokens=NEW, do_sample=False)
        assert torch.equal(cached.generate(**batch, max_new_tokens=NEW, do_sample=False), expected)


def test_preempted_claimants_and_many_waiters_in_a_tiny_pool(model: PreTrainedModel) -> None:
    """A pool that holds hardly more than one of twelve sequences, in two families of prefixes."""
    rows = [
        row
        for seed in (1, 2)
        for row in prompts([SHARED + 3 + 2 * i for i in range(6)], shared=SHARED, seed=seed)
    ]
    with wrapped(model, chunks=12, engine=EngineConfig(step_tokens=3 * CHUNK)) as cached:
        completions = complete(cached, *rows[::2], *rows[1::2], new=2 * CHUNK)
        for completion in completions:
            assert_same(model, completion)
        assert cached.stats()["preemptions"] > 0


def test_a_preempted_claimant_hands_over(model: PreTrainedModel) -> None:
    """The older request outgrows the pool; the younger one, on whom a third waits, makes way."""
    old, young, waiting = prompts([4 * CHUNK])[0], *prompts([4 * CHUNK + 3] * 2, shared=4 * CHUNK, seed=2)
    with wrapped(model, chunks=9, engine=EngineConfig(step_tokens=CHUNK + 1)) as cached:
        completions = [cached.submit(old, max_new_tokens=5 * CHUNK, eos=())]
        for _ in range(5):
            cached.engine.step()
        completions += [cached.submit(row, max_new_tokens=1, eos=()) for row in (young, waiting)]
        run_to_the_end(cached)
        for completion in completions:
            assert_same(model, completion)
        assert cached.stats()["preemptions"] > 0


# ---- any schedule at all

WORKLOAD = [
    (row, new)
    for seed in (1, 2)
    for row, new in zip(
        prompts([2 * CHUNK + 1, 2 * CHUNK, 3 * CHUNK, 20, 5], shared=2 * CHUNK, seed=seed), [1, 9, 3, 12, 2]
    )
]

Action = tuple[str, int]
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, len(WORKLOAD) - 1)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("step"), st.integers(1, 3)),
        st.tuples(st.just("fail"), st.just(0)),
    ),
    min_size=1,
    max_size=25,
)


@pytest.fixture(scope="module")
def small_model() -> PreTrainedModel:
    return tiny_model("gpt2")


@pytest.fixture(scope="module")
def expected(small_model: PreTrainedModel) -> list[list[int]]:
    """Greedy tokens of the uncached model for the whole workload."""
    return [greedy(small_model, row, new) for row, new in WORKLOAD]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(actions=ACTIONS, chunks=st.integers(5, 9), step_tokens=st.sampled_from([3, CHUNK, 64]))
def test_any_schedule_ends_and_every_output_is_the_uncached_one(
    small_model: PreTrainedModel,
    expected: list[list[int]],
    actions: list[Action],
    chunks: int,
    step_tokens: int,
) -> None:
    submitted: list[tuple[int, Completion]] = []
    is_broken = False

    def fail(*_: Any) -> None:
        nonlocal is_broken
        if is_broken:
            is_broken = False
            raise RuntimeError("a broken layer")

    hook = small_model.transformer.h[-1].register_forward_pre_hook(fail)
    try:
        # KVTRIE_CHECK is set: every step ends with `check()`.
        with wrapped(small_model, chunks=chunks, engine=EngineConfig(step_tokens=step_tokens)) as cached:
            for action, number in actions:
                if action == "submit":
                    row, new = WORKLOAD[number]
                    submitted.append((number, cached.submit(row, max_new_tokens=new, eos=())))
                elif action == "cancel" and submitted:
                    submitted[number % len(submitted)][1].cancel()
                elif action == "step":
                    for _ in range(number):
                        cached.engine.step()
                elif action == "fail":
                    is_broken = True
            is_broken = False
            # Bounded by far more steps than all requests take, were each computed again from scratch.
            run_to_the_end(cached)
    finally:
        hook.remove()
    for number, completion in submitted:
        if completion.cancelled or isinstance(completion.error, RuntimeError):
            assert expected[number][: len(completion.tokens)] == completion.tokens
        else:
            assert completion.error is None
            assert completion.tokens == expected[number]


def test_the_smallest_pool_that_fits_each_request(small_model: PreTrainedModel) -> None:
    """Not one slot to spare, and prompts of whole chunks whose last chunk is there already."""
    row = prompts([3 * CHUNK])[0]
    with wrapped(small_model, chunks=4) as cached:
        assert cached.stats()["device"]["capacity_bytes"] == 4 * chunk_bytes(small_model)
        for _ in range(3):
            for completion in complete(cached, row, row[:-1], new=CHUNK):
                assert_same(small_model, completion)
