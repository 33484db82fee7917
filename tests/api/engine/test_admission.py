"""Who is admitted when: by memory, by turns of scopes, and by what others are computing already."""

from __future__ import annotations

from typing import Any

import pytest

from bench.faked_engine import CHUNK, TOKEN, Faked
from kvtrie.api import Completion, EngineConfig, Request
from kvtrie.api.engine.admission import AnswerLengths
from kvtrie.api.engine.waiting_queue import FifoQueue
from kvtrie.prefix_tree import InputError

ENDLESS = {TOKEN + 1}
"""An end token that no answer has: the engine cannot know how long one becomes."""


def running(faked: Faked) -> int:
    return len(faked.engine._scheduler.running)


# ---- memory


@pytest.mark.parametrize(("slots", "requests"), [(100, 50), (100, 200), (400, 400)])
def test_requests_whose_length_is_known_are_never_preempted(slots: int, requests: int) -> None:
    """Ten chunks of prompt and four of answer each: as many run as fit to their end."""
    faked = Faked(slots, check=False, config=EngineConfig(step_tokens=512))
    completions = [faked.submit(160, 64) for _ in range(requests)]
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, running(faked))

    faked.steps.at_step = look
    faked.run()
    assert most == slots // 14
    assert faked.preemptions == 0
    rows = sum(sum(step.values()) for step in faked.steps.rows)
    assert rows <= requests * (160 + 63)
    assert all(len(completion.tokens) == 64 for completion in completions)
    faked.assert_balanced()


def test_shared_chunks_are_counted_once() -> None:
    """Nine chunks in common and one each: 11 of them fit into 20."""
    faked = Faked(20)
    shared = faked.prompt(9 * CHUNK)
    faked.submit(shared, 1)
    faked.run()
    for _ in range(30):
        faked.submit(shared + faked.prompt(8), 8)
    faked.step()
    assert running(faked) == 11
    faked.run()
    assert faked.preemptions == 0


def test_chunks_that_nobody_holds_are_room() -> None:
    """What earlier requests left in the cache is evicted for new ones."""
    faked = Faked(20)
    for _ in range(4):
        faked.submit(5 * CHUNK - 1)
    faked.run()
    assert faked.memory.tree.tiers[0].chunks >= 16
    for _ in range(4):
        faked.submit(5 * CHUNK - 1)
    faked.step()
    assert running(faked) == 4 or faked.engine.idle


def test_a_request_that_does_not_fit_is_not_overtaken_by_smaller_ones_of_its_scope() -> None:
    faked = Faked(20)
    first = faked.submit(10 * CHUNK, 5 * CHUNK)
    faked.step()
    large = faked.submit(8 * CHUNK, 4 * CHUNK)
    small = [faked.submit(CHUNK) for _ in range(10)]
    faked.steps_until(lambda: first.done)
    assert not any(completion.tokens for completion in (large, *small))
    faked.steps_until(lambda: large.tokens)
    faked.run()
    assert faked.preemptions == 0


def test_a_request_alone_takes_what_there_is() -> None:
    faked = Faked(8)
    whole = faked.submit(7 * CHUNK, CHUNK)
    faked.run()
    assert whole.finish_reason == "length"


def test_answers_that_may_end_early_are_expected_to_be_as_long_as_others_were() -> None:
    faked = Faked()
    lengths = AnswerLengths()
    known = Request([1], faked.root(), max_new_tokens=4000)
    unknown = Request([1], faked.root(), max_new_tokens=4000, eos=ENDLESS)
    assert lengths.expected(known, 0, 16) == 4000
    assert lengths.expected(unknown, 0, 16) == 256
    assert lengths.expected(unknown, 1000, 16) == 1016, "longer than expected already"
    for _ in range(200):
        lengths.ended(unknown, 30)
        lengths.ended(known, 4000)
    assert lengths.expected(unknown, 0, 16) in range(30, 35)
    assert lengths.expected(Request([1], faked.root(), max_new_tokens=20, eos=ENDLESS), 0, 16) == 20


def test_after_a_shortage_sequences_are_admitted_one_for_one() -> None:
    """Answers of 320 tokens where 256 are expected: more are admitted than fit, and not again and again."""
    faked = Faked(100, config=EngineConfig(step_tokens=4096))
    completions = [faked.submit(2 * CHUNK, 20 * CHUNK, eos=ENDLESS) for _ in range(60)]
    faked.run()
    assert all(completion.finish_reason == "length" for completion in completions)
    assert 0 < faked.preemptions <= 10
    faked.assert_balanced()


# ---- scopes


@pytest.mark.parametrize("waiting", [1000])
def test_another_scope_s_first_token_does_not_wait_for_a_thousand_requests(waiting: int) -> None:
    """All seats are taken by a, whose answers are long: b has its first token after the very next step."""
    faked = Faked(20_000, check=False, config=EngineConfig(max_running=64))
    for _ in range(waiting):
        faked.submit(200, 512)
    faked.step(20)
    assert running(faked) == 64
    steps = []
    for _ in range(9):
        completion = faked.submit(200, 4, tenant="b")
        steps.append(faked.steps_until(lambda c=completion: c.tokens))
        faked.step(3)
    assert sorted(steps)[4] == 1
    assert max(steps) <= 2


def test_the_order_of_arrival_makes_it_wait() -> None:
    """The same with the plain queue, so that the test above means something."""
    faked = Faked(20_000, check=False, queue=FifoQueue(), config=EngineConfig(max_running=64))
    for _ in range(200):
        faked.submit(200, 64)
    faked.step(20)
    completion = faked.submit(200, 4, tenant="b")
    assert faked.steps_until(lambda: completion.tokens) > 100


def test_a_scope_that_fills_the_memory_makes_way_for_another_one() -> None:
    faked = Faked(100, config=EngineConfig(step_tokens=4096))
    flood = [faked.submit(8 * CHUNK, 12 * CHUNK) for _ in range(30)]
    faked.step(20)
    assert running(faked) == 5
    other = faked.submit(8 * CHUNK, 2 * CHUNK, tenant="b")
    assert faked.steps_until(lambda: other.tokens) == 1
    assert faked.preemptions == 1
    faked.run()
    assert all(len(completion.tokens) == 12 * CHUNK for completion in flood)
    faked.assert_balanced()


def test_scopes_with_equal_floods_come_to_equal_shares_and_stay_there() -> None:
    """Seats change hands until shares are equal, and not to and fro."""
    faked = Faked(20_000, check=False, config=EngineConfig(max_running=32))
    for _ in range(200):
        faked.submit(100, 100)
    faked.step(10)
    for _ in range(200):
        faked.submit(100, 100, tenant="b")
    faked.step(5)
    scopes = [job.scope for job in faked.engine._scheduler.running]
    assert scopes.count("tenant:a") == scopes.count("tenant:b") == 16
    assert faked.preemptions == 16
    faked.step(150)
    assert faked.preemptions == 16


def test_one_scope_alone_is_never_preempted_for_its_own() -> None:
    faked = Faked(20_000, check=False, config=EngineConfig(max_running=8))
    for _ in range(50):
        faked.submit(100, 20, priority=5)
    faked.step(2)
    urgent = faked.submit(100, 2, priority=-5)
    faked.steps_until(lambda: urgent.done)
    assert faked.preemptions == 0
    waiting = [c for c in faked.engine.under_way() if not c.tokens]
    assert len(waiting) > 10, "it overtook those that wait"


# ---- claims


def test_looks_at_waiting_requests_are_bounded_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    faked = Faked(4096, check=False, config=EngineConfig(step_tokens=CHUNK))
    shared = faked.prompt(20 * CHUNK)
    completions = [faked.submit([*shared, place], 1) for place in range(500)]
    matched = 0
    match = faked.memory.tree.match

    def counted(*arguments: Any) -> Any:
        nonlocal matched
        matched += 1
        return match(*arguments)

    monkeypatch.setattr(faked.memory.tree, "match", counted)
    faked.step()
    assert matched == 1 + 32
    # Until all are parked; then nobody is looked at while the claim lasts.
    faked.step(16)
    matched = 0
    faked.step()
    assert matched == 0
    faked.run()
    assert all(completion.finish_reason == "length" for completion in completions)
    assert sum(completion.cached_tokens for completion in completions) == 499 * 20 * CHUNK
    faked.assert_balanced()


def test_many_who_wait_for_one_claim_do_not_hold_up_another_scope() -> None:
    faked = Faked(4096, check=False, config=EngineConfig(step_tokens=2 * CHUNK))
    shared = faked.prompt(100 * CHUNK)
    for place in range(500):
        faked.submit([*shared, place], 1)
    other = faked.submit(8, 1, tenant="b")
    assert faked.steps_until(lambda: other.done) == 1


def test_cancelled_ones_among_the_parked_leave() -> None:
    faked = Faked(256, config=EngineConfig(step_tokens=CHUNK))
    shared = faked.prompt(8 * CHUNK)
    made = [faked.submit([*shared, place], 1) for place in range(10)]
    faked.step(2)
    for completion in made[1::2]:
        completion.cancel()
    faked.step()
    assert [completion.finish_reason for completion in made] == [None, "cancelled"] * 5
    faked.run()
    assert all(completion.finish_reason == "length" for completion in made[::2])
    faked.assert_balanced()


# ---- a step's prompt tokens


def test_a_long_prompt_in_prefill_does_not_hold_up_a_short_one() -> None:
    faked = Faked(12_000, check=False)
    long = faked.submit(131_072, 4)
    faked.step(2)
    short = faked.submit(100, 4)
    assert faked.steps_until(lambda: short.tokens) == 1
    assert not long.tokens


def test_neither_do_several_long_ones_of_the_same_scope() -> None:
    faked = Faked(30_000, check=False)
    for _ in range(3):
        faked.submit(131_072, 4)
    faked.step(2)
    short = faked.submit(100, 4)
    assert faked.steps_until(lambda: short.tokens) == 1


def test_a_prompt_alone_takes_whole_steps() -> None:
    faked = Faked(12_000, check=False)
    long = faked.submit(131_072, 1)
    assert faked.steps_until(lambda: long.tokens) == 64


def test_a_claim_that_others_wait_for_is_computed_first() -> None:
    """Behind an older long prompt, and beside shorter ones."""
    faked = Faked(8192, check=False, config=EngineConfig(step_tokens=512))
    faked.submit(60_000, 1)
    faked.step()
    shared = faked.prompt(64 * CHUNK)
    claimant = faked.submit([*shared, 1], 1)
    faked.step()
    waiter = faked.submit([*shared, 2], 1)
    faked.step()
    for _ in range(40):
        faked.submit(200, 1)
    # Half of each step is its own: 1,025 tokens, of which two steps have computed 512 at most.
    assert faked.steps_until(lambda: claimant.done) <= 4
    assert faked.steps_until(lambda: waiter.done) <= 1


@pytest.mark.parametrize("limits", [{"prefill_part": 0.0}, {"prefill_part": 1.5}, {"max_waiting": 0}])
def test_limits_that_are_none(limits: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        EngineConfig(**limits)


def test_a_completion_knows_how_often_it_was_preempted() -> None:
    faked = Faked(100, config=EngineConfig(step_tokens=4096, max_running=4))
    flood = [faked.submit(8 * CHUNK, 4 * CHUNK) for _ in range(4)]
    faked.step(3)
    other: Completion = faked.submit(8, 2, tenant="b")
    faked.run()
    assert other.preemptions == 0
    assert sum(completion.preemptions for completion in flood) == faked.preemptions == 1
    assert flood[-1].preemptions == 1, "the one admitted last"
