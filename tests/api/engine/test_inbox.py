"""`submit` beside a step that takes as long as it likes, and its limits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from transformers import PreTrainedModel

from bench.faked_engine import Faked
from kvtrie.api import EngineConfig, PrefixCachedModel
from kvtrie.api.engine.engine import Engine
from kvtrie.api.engine.waiting_limits import Pace
from kvtrie.prefix_tree import InputError, QueueFull
from tests.api.balance import assert_same, wrapped
from tests.api.lower_tiers import small_model
from tests.api.tiny_models import prompts

SECONDS = 60.0


@contextmanager
def a_step_under_way(engine: Engine, begun: threading.Event, go_on: threading.Event) -> Iterator[None]:
    """Another thread is in the middle of a step, and holds the lock, until the block is left."""
    stepping = threading.Thread(target=engine.step)
    stepping.start()
    try:
        assert begun.wait(SECONDS)
        assert not engine.lock.acquire(blocking=False), "the step holds the lock"
        yield
    finally:
        go_on.set()
        stepping.join(SECONDS)


def test_submit_waits_for_no_step() -> None:
    faked = Faked()
    begun, go_on = threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        assert go_on.wait(SECONDS)

    first = faked.submit(20)
    faked.steps.at_step = block
    with a_step_under_way(faked.engine, begun, go_on):
        others = [faked.submit(20, tenant=tenant) for tenant in "abc"]
        assert not faked.engine.idle
        assert not any(completion.done for completion in (first, *others))
        others[2].cancel()
        faked.engine.abort("nobody")
    faked.run()
    assert [completion.finish_reason for completion in others] == ["length", "length", "cancelled"]
    assert faked.memory.counters["requests"] == 4
    faked.assert_balanced()


def test_a_wrapper_s_submit_waits_for_no_pass_either_even_of_a_tenant_that_is_new() -> None:
    model: PreTrainedModel = small_model()
    begun, go_on = threading.Event(), threading.Event()

    def block(*_: object) -> None:
        begun.set()
        assert go_on.wait(SECONDS)

    rows = prompts([20, 24, 28])
    with wrapped(model, shared={"tools": ["acme"]}) as cached:
        first = cached.submit(rows[0], max_new_tokens=2, eos=())
        hook = model.model.norm.register_forward_pre_hook(block)
        # Seen before the step: a hook changes what the model is.
        with cached.engine.lock:
            cached._identity.digests()
        first.cancel()
        cached.engine.step()
        first = cached.submit(rows[0], max_new_tokens=2, eos=())
        with a_step_under_way(cached.engine, begun, go_on):
            others = [
                cached.submit(row, tenant=tenant, max_new_tokens=2, eos=())
                for row, tenant in zip(rows[1:], ("acme", "globex"))
            ]
        cached.engine.run()
        hook.remove()
        for completion in (first, *others):
            assert_same(model, completion)


def test_a_model_that_was_changed_is_digested_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digesting may write to the model."""
    model: PreTrainedModel = small_model()
    with wrapped(model) as cached:
        held = []
        digest = cached._identity._digest

        def look() -> object:
            held.append(cached.engine._is_locked_here())
            return digest()

        monkeypatch.setattr(cached._identity, "_digest", look)
        before = cached._roots(None)[0]
        assert held == []
        model.lm_head.weight.data = model.lm_head.weight.data.clone()
        model.model.norm.weight.detach().mul_(1.5)
        assert cached._roots(None)[0] is not before
        assert held == [True]
        model.model.norm.weight.detach().div_(1.5)


# ---- limits


def test_one_more_than_may_wait_is_refused_and_told_when_to_come_again() -> None:
    faked = Faked(config=EngineConfig(max_waiting=3, max_running=2))
    for _ in range(3):
        faked.submit(50, 5)
    with pytest.raises(
        QueueFull, match=r"3 requests wait already, of at most 3; ask again in 1\.0 s"
    ) as refused:
        faked.submit(50, 5)
    assert refused.value.retry_after_seconds == 1.0
    faked.step()
    # Two of them run now.
    for _ in range(2):
        faked.submit(50, 5)
    with pytest.raises(QueueFull) as refused:
        faked.submit(50, 5)
    assert 0.1 <= refused.value.retry_after_seconds <= 600
    faked.run()
    assert faked.memory.counters["requests"] == 5
    faked.submit(50, 5)
    faked.run()
    faked.assert_balanced()


def test_tokens_that_wait_are_bounded_too_but_one_request_may_always_wait() -> None:
    faked = Faked(config=EngineConfig(max_waiting_tokens=1000))
    faked.submit(1500, 5)
    with pytest.raises(QueueFull, match="requests of 1505 tokens wait already, and 55 more"):
        faked.submit(50, 5)
    faked.run()
    for _ in range(18):
        faked.submit(50, 5)
    with pytest.raises(QueueFull):
        faked.submit(50, 5)
    faked.run()


def test_those_that_wait_for_a_claim_count_as_waiting() -> None:
    faked = Faked(config=EngineConfig(max_waiting=3, step_tokens=16))
    shared = faked.prompt(200)
    for _ in range(3):
        faked.submit(shared)
    faked.step(2)
    faked.submit(shared)
    with pytest.raises(QueueFull):
        faked.submit(shared)
    faked.run()


def test_generate_and_warm_are_never_refused() -> None:
    model: PreTrainedModel = small_model()
    (row,) = prompts([20])
    with wrapped(model, engine=EngineConfig(max_waiting=1)) as cached:
        waiting = cached.submit(row, max_new_tokens=2, eos=())
        with pytest.raises(QueueFull):
            cached.submit(row)
        assert cached.warm(row[:16]).stored_tokens == 16
        cached.engine.run()
        assert_same(model, waiting)


def test_the_pace_is_of_late() -> None:
    pace = Pace()
    assert pace.seconds_for(100) == 1.0
    for _ in range(1000):
        pace.computed(100, 1.0)
    assert pace.seconds_for(500) == pytest.approx(5.0)
    for _ in range(1000):
        pace.computed(1000, 1.0)
    assert pace.seconds_for(500) == pytest.approx(0.5)
    assert pace.seconds_for(1) == 0.1
    assert pace.seconds_for(1 << 40) == 600.0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"priority": 0.5}, "priority must be a whole number"),
        ({"deadline_seconds": 0}, "deadline_seconds must be above 0"),
        ({"deadline_seconds": float("nan")}, "deadline_seconds must be a finite number"),
        ({"deadline_seconds": "1"}, "deadline_seconds must be a finite number"),
        ({"deadline_seconds": True}, "deadline_seconds must be a finite number"),
        ({"request_id": ""}, "request_id must be a string that is not empty"),
        ({"request_id": 7}, "request_id must be a string that is not empty"),
    ],
)
def test_what_a_request_may_not_hold(fields: dict[str, object], says: str) -> None:
    faked = Faked()
    with pytest.raises(InputError, match=says):
        faked.submit(5, **fields)


def test_a_queue_that_is_full_leaves_nothing_behind() -> None:
    model: PreTrainedModel = small_model()
    (row,) = prompts([20])
    with wrapped(model, engine=EngineConfig(max_waiting=1)) as cached:
        completion = cached.submit(row, max_new_tokens=2, eos=())
        refused = 0
        for _ in range(5):
            try:
                cached.submit(row, max_new_tokens=2, eos=())
            except QueueFull:
                refused += 1
        assert refused == 5
        cached.engine.run()
        assert completion.done
        assert isinstance(cached, PrefixCachedModel)
        assert cached.stats()["requests"] == 1
