"""Whatever one request raises ends that request, wherever it is; the others are served, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from transformers import PreTrainedModel

from kvtrie.api import Completion, EngineConfig, PrefixCachedModel, Sampling
from kvtrie.api.engine import engine as engine_module
from kvtrie.api.engine.sampler import Sampler
from kvtrie.api.engine.sequence_kv import SequenceKV
from kvtrie.api.tiers.chunk_records import ChunkRecords
from kvtrie.api.tiers.store_tier import StoreTier
from kvtrie.chunk_kernels import ChunkPool
from kvtrie.prefix_tree import InputError, Namespace, PrefixTree
from tests.api.balance import CHUNK, assert_balanced, assert_same, run_to_the_end, wrapped
from tests.api.lower_tiers import KeptStore, small_model
from tests.api.tiny_models import prompts

NEW = 2 * CHUNK
BAD, GOOD, WAITER = (*prompts([3 * CHUNK + 3]), *prompts([2 * CHUNK + 5], seed=2), *prompts([4 * CHUNK]))
"""The waiter's prompt begins as the bad one does, and waits for it."""


class Broken(Exception):
    """A defect that nobody foresaw."""


class Leaving(BaseException):
    """As `SystemExit` and `KeyboardInterrupt`: no request's error."""


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return small_model()


def of_bad(tokens: bytes) -> bool:
    """Whether int32le tokens are the beginning of the bad prompt, or all of it and more."""
    row = b"".join(token.to_bytes(4, "little") for token in BAD)
    return bool(tokens) and (row.startswith(tokens) or tokens.startswith(row))


Break = Callable[[pytest.MonkeyPatch, type[BaseException]], None]


def breaks(owner: type, name: str, is_bad: Callable[..., bool], after: bool = False) -> Break:
    """Makes a method raise for the bad request, once; before it does anything, or `after` it has."""

    def broken(patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
        method, left = getattr(owner, name), [1]

        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            hit = left[0] and is_bad(self, *args, **kwargs)
            if hit and not after:
                left[0] = 0
                raise error(name)
            result = method(self, *args, **kwargs)
            if hit:
                left[0] = 0
                raise error(name)
            return result

        patch.setattr(owner, name, wrapper)

    return broken


STAGES: dict[str, Break] = {
    "match": breaks(PrefixTree, "match", lambda tree, root, tokens, *more: of_bad(tokens)),
    "claim": breaks(PrefixTree, "claim", lambda tree, match, tokens: of_bad(tokens)),
    "lease": breaks(PrefixTree, "lease", lambda tree, match: match.tokens == 0),
    "reserve": breaks(SequenceKV, "reserve", lambda kv, rows: of_bad(bytes(kv.tokens))),
    "commit": breaks(SequenceKV, "commit", lambda kv, tokens: list(tokens) == BAD[: len(tokens)]),
    "publish": breaks(PrefixTree, "publish", lambda tree, claim, *more: of_bad(claim.nodes[0].tokens)),
    "extend": breaks(PrefixTree, "extend", lambda tree, lease, node: of_bad(node.tokens)),
    "extended": breaks(PrefixTree, "extend", lambda tree, lease, node: of_bad(node.tokens), after=True),
    "offer": breaks(ChunkRecords, "offer", lambda records, *place: of_bad(place[-2])),
    "sample": breaks(Sampler, "next_token", lambda sampler, logits, tokens: tokens[: len(BAD)] == BAD),
}


@pytest.fixture
def cached(model: PreTrainedModel) -> Iterator[PrefixCachedModel]:
    tier, config = StoreTier(KeptStore()), EngineConfig(step_tokens=CHUNK + 2)
    with wrapped(model, chunks=64, store=tier, engine=config) as wrapper:
        yield wrapper


def submit_all(cached: PrefixCachedModel) -> list[Completion]:
    greedily = Sampling(temperature=1e-30)
    return [cached.submit(row, max_new_tokens=NEW, eos=(), sampling=greedily) for row in (BAD, GOOD, WAITER)]


@pytest.mark.parametrize("stage", STAGES)
def test_an_error_at_any_stage(
    cached: PrefixCachedModel, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    with monkeypatch.context() as patch:
        STAGES[stage](patch, Broken)
        bad, good, waiter = submit_all(cached)
        cached.engine.wait([good])
        assert good.done
        run_to_the_end(cached)
    assert isinstance(bad.error, Broken)
    assert bad.finish_reason == "error"
    assert_same(cached.model, good)
    assert_same(cached.model, waiter)
    assert_balanced(cached)
    for completion in submit_all(cached):
        cached.engine.wait([completion])
        assert_same(cached.model, completion)


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_at_any_stage(
    cached: PrefixCachedModel, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """It is the caller's: `run` raises it, and called again it goes on with all of the requests."""
    with monkeypatch.context() as patch:
        STAGES[stage](patch, Leaving)
        completions = submit_all(cached)
        with pytest.raises(Leaving):
            cached.engine.run()
        cached.check()
        assert not any(completion.error for completion in completions)
        run_to_the_end(cached)
    for completion in completions:
        assert_same(cached.model, completion)
    assert_balanced(cached)


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_and_then_nothing_but_cancels(
    cached: PrefixCachedModel, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    with monkeypatch.context() as patch:
        STAGES[stage](patch, Leaving)
        completions = submit_all(cached)
        with pytest.raises(Leaving):
            cached.engine.run()
        cached.engine.discard(completions)
    assert_balanced(cached)
    completions = submit_all(cached)
    cached.engine.run()
    for completion in completions:
        assert_same(cached.model, completion)


@pytest.mark.parametrize("error", [Broken, Leaving])
@pytest.mark.parametrize("stage", ["restore", "insert", "take"])
def test_a_load_that_fails(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, stage: str, error: type[BaseException]
) -> None:
    store = KeptStore()
    with wrapped(model, store=StoreTier(store)) as cached:
        cached.engine.wait(submit_all(cached))
        assert cached.flush()
    broken = {
        "restore": breaks(ChunkPool, "write_chunk", lambda pool, slot, *parts: True),
        "insert": breaks(PrefixTree, "insert", lambda tree, parent, root, key, chunk, *more: of_bad(chunk)),
        "take": breaks(type(cached.engine.memory), "take", lambda memory, *more, **named: True),
    }[stage]
    with wrapped(model, store=StoreTier(store)) as cached:
        with monkeypatch.context() as patch:
            broken(patch, error)
            bad, good, waiter = submit_all(cached)
            if error is Leaving:
                with pytest.raises(Leaving):
                    cached.engine.run()
                cached.check()
            cached.engine.run()
        assert isinstance(bad.error, Broken) if error is Broken else bad.error is None
        for completion in (good, waiter, *([bad] if bad.error is None else [])):
            assert_same(model, completion)
        assert cached.stats()["loaded_chunks"] > 0


# ---- the forward pass


@pytest.fixture
def arm(model: PreTrainedModel) -> Iterator[Callable[[int, type[BaseException]], None]]:
    """Makes a forward pass of the model raise half way: the n-th from now on.

    The hook is there all the time, since a model with another hook is another model.
    """
    left, error = 0, Broken

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise error("half way")

    def arm(passes: int, raised: type[BaseException]) -> None:
        nonlocal left, error
        left, error = passes, raised

    hook = model.model.norm.register_forward_pre_hook(count)
    yield arm
    hook.remove()


def test_a_pass_that_fails_ends_the_requests_of_that_step(model: PreTrainedModel, arm: Any) -> None:
    """Whoever waits for another one does not meet its error."""
    with wrapped(model, engine=EngineConfig(max_running=1)) as cached:
        bad = cached.submit(BAD, max_new_tokens=4, eos=())
        good = cached.submit(GOOD, max_new_tokens=4, eos=())
        arm(1, Broken)
        cached.engine.wait([good])
        assert isinstance(bad.error, Broken)
        assert_same(model, good)


@pytest.mark.parametrize("at", [1, 3])
def test_an_interrupt_in_a_pass(model: PreTrainedModel, arm: Any, at: int) -> None:
    """What the pass wrote is not kept, and computed again by the next one."""
    with wrapped(model, engine=EngineConfig(step_tokens=CHUNK + 2)) as cached:
        completions = submit_all(cached)
        arm(at, Leaving)
        with pytest.raises(Leaving):
            cached.engine.run()
        cached.check()
        assert not any(completion.done for completion in completions)
        cached.engine.run()
        for completion in completions:
            assert_same(model, completion)


def test_slots_of_an_interrupted_pass_are_given_back_zeroed(model: PreTrainedModel) -> None:
    """A request that is cancelled after the interrupt leaves no NaN for later readers of its slots."""

    def leave(*_: Any) -> None:
        raise Leaving

    with wrapped(model) as cached:
        pool = cached.engine.memory.pool
        bad = cached.submit(BAD, eos=())
        hook = model.model.norm.register_forward_pre_hook(leave)
        weight = model.model.layers[0].self_attn.v_proj.weight
        kept = weight.detach().clone()
        weight.data.fill_(float("nan"))
        try:
            with pytest.raises(Leaving):
                cached.engine.run()
        finally:
            weight.data.copy_(kept)
            hook.remove()
        assert not pool.v.isfinite().all(), "the layer has written"
        cached.engine.discard([bad])
        assert pool.v.isfinite().all()


# ---- tiers that break their contract


class Rude:
    """A tier that answers loads with something that is no list of records."""

    def __init__(self, answer: Callable[[Sequence[bytes]], Any]) -> None:
        self._answer = answer

    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> Any:
        return self._answer(keys)

    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        return True

    def flush(self, timeout_seconds: float) -> bool:
        return True

    def stats(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        """Nothing to let go of."""


def raising(keys: Sequence[bytes]) -> Iterator[bytes]:
    yield b"x"
    raise Broken


@pytest.mark.parametrize(
    "answer",
    [
        lambda keys: [None],
        lambda keys: None,
        lambda keys: 7,
        lambda keys: "text",
        lambda keys: ["text"],
        lambda keys: [b""],
        lambda keys: [b"x" * 1000] * 100,
        lambda keys: [[1, 2]],
        lambda keys: {"a": b"x"},
        lambda keys: (None for _ in keys),
        lambda keys: [memoryview(b"abcd" * 99)[::2]],
        raising,
        lambda keys: keys[len(keys)],
    ],
)
def test_a_tier_that_breaks_its_contract(model: PreTrainedModel, answer: Any) -> None:
    with wrapped(model, store=Rude(answer)) as cached:
        completions = submit_all(cached)
        run_to_the_end(cached)
        for completion in completions:
            assert_same(model, completion)
        stats = cached.stats()
        assert stats.get("loaded_chunks", 0) == 0
        assert stats.get("lower_outages", 0) + sum(
            count for name, count in stats.items() if name.startswith("records_rejected.")
        )


# ---- misuse


def test_a_request_of_another_engine_is_not_waited_for(model: PreTrainedModel) -> None:
    with wrapped(model) as one, wrapped(model) as other:
        mine, theirs = (
            one.submit(GOOD, max_new_tokens=2, eos=()),
            other.submit(GOOD, max_new_tokens=2, eos=()),
        )
        with pytest.raises(InputError, match="a request of another engine"):
            one.engine.wait([mine, theirs])
        assert_same(model, mine)
        other.engine.wait([theirs])


def test_a_step_inside_a_step(model: PreTrainedModel) -> None:
    with wrapped(model) as cached:

        def again(*_: Any) -> None:
            cached.engine.step()

        hook = model.model.norm.register_forward_pre_hook(again)
        try:
            inside = cached.submit(GOOD, max_new_tokens=2, eos=())
            cached.engine.run()
        finally:
            hook.remove()
        with pytest.raises(InputError, match="called from inside a step"):
            raise inside.error or AssertionError("served")


def test_cancelling_everything_inside_a_step(model: PreTrainedModel) -> None:
    with wrapped(model) as cached:
        hook = model.model.norm.register_forward_pre_hook(lambda *_: cached.engine.cancel_all())
        try:
            completions = submit_all(cached)
            cached.engine.run()
        finally:
            hook.remove()
        assert [completion.finish_reason for completion in completions] == ["cancelled"] * 3


def test_a_prefilled_request_that_nobody_keeps_is_given_back(model: PreTrainedModel) -> None:
    """As after an interrupt between `submit` and the list that was to have its result."""
    with wrapped(model) as cached:
        root = cached._roots(None)[0]
        cached.engine.submit(engine_module.Request(GOOD, root, prefill_only=True, max_new_tokens=0))
        cached.engine.run()
        assert cached.engine.memory.tree.leases
        cached.engine.step()
        assert_balanced(cached)


def test_a_traffic_watch_that_fails_fails_no_request(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wrapped(model) as cached:

        def fail(*_: Any) -> None:
            raise Broken

        monkeypatch.setattr(cached.engine.watch, "completed", fail)
        completions = submit_all(cached)
        run_to_the_end(cached)
        for completion in completions:
            assert_same(model, completion)
