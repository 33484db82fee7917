"""Streams, warming and pins, figures and snapshots, and a wrapper in several threads."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvtrie.api import PrefixCachedModel
from kvtrie.prefix_tree import InputError, Snapshot
from kvtrie.prefix_tree.errors import ModelOutputError, PinBudgetExceeded, PoolExhausted
from tests.api.balance import CHUNK, assert_balanced, assert_same, chunk_bytes, complete, greedy, wrapped
from tests.api.tiny_models import left_padded, prompts, tiny_model

ROW = prompts([3 * CHUNK + 2])[0]


class Spelling:
    """The least that is a tokenizer: a character per token, and the word that a token begins with a space."""

    def encode(self, text: str) -> list[int]:
        return [3 + ord(character) % 200 for character in text]

    def decode(self, tokens: list[int]) -> str:
        return " ".join(f"w{token}" for token in tokens)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama-gqa")


@pytest.fixture
def cached(model: PreTrainedModel) -> Iterator[PrefixCachedModel]:
    with wrapped(model, tokenizer=Spelling()) as wrapper:
        yield wrapper


# ---- streams


def test_a_stream_of_ids(cached: PrefixCachedModel) -> None:
    for _ in range(2):
        assert list(cached.stream(ROW, max_new_tokens=9, eos=())) == greedy(cached.model, ROW, 9)
    assert list(cached.stream(torch.tensor([ROW]), max_new_tokens=3, eos=())) == greedy(cached.model, ROW, 3)


def test_a_stream_of_text(cached: PrefixCachedModel) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    expected = greedy(cached.model, Spelling().encode(text), 40)
    pieces = list(cached.stream(text, max_new_tokens=40, eos=()))
    assert pieces == [f" w{token}" for token in expected]


def test_a_stream_ends_at_eos(cached: PrefixCachedModel) -> None:
    tokens = greedy(cached.model, ROW, 9)
    end = tokens[4]
    assert list(cached.stream(ROW, max_new_tokens=9, eos={end})) == tokens[: tokens.index(end) + 1]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_leaving_a_stream_early_cancels_and_frees(cached: PrefixCachedModel, after: int) -> None:
    stream = cached.stream(ROW, max_new_tokens=100, eos=())
    for _ in range(after):
        next(stream)
    assert not cached.engine.idle
    stream.close()  # type: ignore[attr-defined]
    assert_balanced(cached)


def test_a_stream_that_nobody_reads_is_cancelled_with_it(cached: PrefixCachedModel) -> None:
    stream = cached.stream(ROW, max_new_tokens=100, eos=())
    assert not cached.engine.idle
    del stream
    gc.collect()
    assert_balanced(cached)


def test_breaking_out_of_the_loop(cached: PrefixCachedModel) -> None:
    for count, _ in enumerate(cached.stream(ROW, max_new_tokens=100, eos=())):
        if count == 2:
            break
    gc.collect()
    assert_balanced(cached)


def test_leaving_a_stream_leaves_the_others_running(cached: PrefixCachedModel) -> None:
    other = cached.submit(prompts([30], seed=3)[0], max_new_tokens=12, eos=())
    stream = cached.stream(ROW, max_new_tokens=100, eos=())
    next(stream)
    made = len(other.tokens)
    stream.close()  # type: ignore[attr-defined]
    assert len(other.tokens) == made, "leaving computes nothing"
    cached.engine.run()
    assert_same(cached.model, other)


def test_a_stream_that_fails_says_so(cached: PrefixCachedModel) -> None:
    weight = cached.model.lm_head.weight
    kept = weight.detach().clone()
    stream = cached.stream(ROW, max_new_tokens=100, eos=())
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        cached.refresh()
        with pytest.raises(InputError, match="changed while"):
            list(stream)
        with pytest.raises(ModelOutputError):
            list(cached.stream(ROW))
    finally:
        with torch.no_grad():
            weight.copy_(kept)


# ---- warming and pins


def test_warming(cached: PrefixCachedModel) -> None:
    first = cached.warm(ROW)
    assert (first.tokens, first.cached_tokens, first.stored_tokens, first.pin) == (26, 0, 24, None)
    again = cached.warm(ROW)
    assert (again.cached_tokens, again.stored_tokens) == (24, 24)
    (completion,) = complete(cached, ROW)
    assert completion.cached_tokens == 24
    assert_same(cached.model, completion)


def test_warming_whole_chunks_and_text(cached: PrefixCachedModel) -> None:
    text = "sixteen letters!"
    assert cached.warm(text).stored_tokens == 16
    (completion,) = complete(cached, Spelling().encode(text))
    # A hit leaves one token to compute; the rest of the last chunk is copied.
    assert completion.cached_tokens == 15
    assert_same(cached.model, completion)


def test_warming_less_than_a_chunk(cached: PrefixCachedModel) -> None:
    assert cached.warm(ROW[:5]).stored_tokens == 0
    with pytest.raises(InputError, match="nothing to pin"):
        cached.warm(ROW[:5], pin=True)
    assert_balanced(cached)


def fill(cached: PrefixCachedModel, seeds: range = range(10, 22)) -> None:
    for seed in seeds:
        complete(cached, prompts([3 * CHUNK], seed=seed)[0], new=1)


def test_a_pin_outlasts_the_pressure_that_evicts_others(model: PreTrainedModel) -> None:
    with wrapped(model, chunks=12) as cached:
        warmed = cached.warm(ROW, pin=True, name="system")
        fill(cached)
        assert cached.stats()["evictions"] > 0
        assert cached.warm(ROW).cached_tokens == 24
        assert warmed.pin is not None
        cached.unpin(warmed.pin)
        cached.unpin(warmed.pin)
        fill(cached, range(30, 42))
        assert cached.warm(ROW).cached_tokens == 0


def test_a_pin_that_expires(model: PreTrainedModel) -> None:
    with wrapped(model, chunks=12) as cached:
        warmed = cached.warm(ROW, pin=60.0)
        fill(cached)
        assert cached.warm(ROW).cached_tokens == 24
        cached.engine.memory.tree.steady = lambda: time.monotonic() + 61.0
        fill(cached, range(30, 42))
        assert cached.warm(ROW).cached_tokens == 0
        assert warmed.pin is not None
        cached.unpin(warmed.pin)


def test_a_pin_budget_is_each_scope_s(model: PreTrainedModel) -> None:
    budget = 4 * chunk_bytes(model)
    with wrapped(model, pin_budget=budget, shared={"tools": ["*"]}) as cached:
        pin = cached.warm(ROW, pin=True).pin
        assert cached.warm(ROW, pin=True).pin is not None, "the same chunks are counted once"
        other = prompts([2 * CHUNK], seed=4)[0]
        with pytest.raises(PinBudgetExceeded, match=str(budget)):
            cached.warm(other, pin=True)
        assert_balanced(cached)
        for where in {"tenant": "acme"}, {"scope": "tools"}:
            cached.warm(other, pin=True, **where)  # type: ignore[arg-type]
        assert pin is not None
        assert len(cached.engine.memory.tree.pins) == 4


def test_pins_that_hold_the_pool(model: PreTrainedModel) -> None:
    """A request that pins leave no room for fails alone, and says why."""
    with wrapped(model, chunks=6) as cached:
        pin = cached.warm(prompts([5 * CHUNK], seed=3)[0], pin=True).pin
        (failed,) = complete(cached, ROW)
        assert isinstance(failed.error, PoolExhausted)
        assert "unpin" in str(failed.error)
        with pytest.raises(PoolExhausted):
            cached.generate(torch.tensor([ROW]), max_new_tokens=2)
        assert_balanced(cached)
        assert pin is not None
        cached.unpin(pin)
        assert_same(model, *complete(cached, ROW))


# ---- figures


def test_stats(cached: PrefixCachedModel) -> None:
    empty = cached.stats()
    assert empty["device"]["used_bytes"] == empty["device"]["chunks"] == empty["evictions"] == 0
    complete(cached, ROW, new=1)
    complete(cached, ROW, new=1, tenant="acme")
    complete(cached, ROW, new=1)
    stats = cached.stats()
    assert stats["requests"] == 3
    assert stats["prompt_tokens"] == 3 * len(ROW)
    assert stats["cached_tokens"] == 24
    assert stats["device"]["chunks"] == 6
    size = chunk_bytes(cached.model)
    assert stats["device"]["used_bytes"] == 6 * size
    assert set(stats["device"]["scopes"]) == {"tenant:default", "tenant:acme"}
    assert stats["lower"] == {}
    begun = cached.submit(ROW, max_new_tokens=5, eos=())
    cached.engine.step()
    assert cached.stats()["device"]["pending_bytes"] == size
    begun.cancel()
    cached.engine.run()


def test_a_snapshot_file_reads_as_it_was_taken(cached: PrefixCachedModel, tmp_path: Path) -> None:
    cached.warm(ROW, pin=True, name="system")
    complete(cached, ROW)
    path = tmp_path / "tree.json"
    path.write_text("an older one")
    cached.snapshot(path)
    assert [file.name for file in tmp_path.iterdir()] == ["tree.json"]
    snapshot = Snapshot.from_json(path.read_text())
    assert snapshot.to_json() == path.read_text()
    assert [token for node in snapshot.nodes for token in node.tokens] == ROW[:24]
    assert [node.depth for node in snapshot.nodes] == [1, 2, 3]
    assert all(node.pin is not None and node.pin.name == "system" for node in snapshot.nodes)
    assert [space.scope for space in snapshot.namespaces] == ["tenant:default"]
    assert snapshot.counters["requests"] == 2


# ---- threads


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """What each returns; the first error of any is raised here."""
    results: list[Any] = [None] * len(works)
    errors: list[BaseException] = []

    def run(place: int, work: Callable[[], Any]) -> None:
        try:
            results[place] = work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread does not come back"
    if errors:
        raise errors[0]
    return results


def test_two_threads_on_one_wrapper(model: PreTrainedModel) -> None:
    rows = prompts([20, 33, 26, 40], shared=16)
    batch = left_padded(rows)
    expected = model.generate(**batch, max_new_tokens=6, do_sample=False)
    with wrapped(model, chunks=128) as cached:

        def generate() -> None:
            for _ in range(4):
                found = cached.generate(**batch, max_new_tokens=6, do_sample=False)
                assert torch.equal(found, expected)

        def stream() -> None:
            for row in rows * 2:
                assert list(cached.stream(row, max_new_tokens=6, eos=())) == greedy(model, row, 6)

        def submit() -> None:
            completions = [cached.submit(row, max_new_tokens=6, eos=()) for row in rows * 2]
            cached.engine.wait(completions)
            for completion in completions:
                assert_same(model, completion)

        in_threads(generate, stream, submit)


def test_direct_calls_from_another_thread(model: PreTrainedModel) -> None:
    """They wait their turn, and get the model's own attention."""
    batch = left_padded(prompts([30, 22], shared=16))
    ids = torch.tensor([ROW])
    logits = model(ids).logits.detach()
    expected = model.generate(**batch, max_new_tokens=12, do_sample=False)
    is_over = threading.Event()
    with wrapped(model) as cached:

        def generate() -> None:
            try:
                for _ in range(4):
                    found = cached.generate(**batch, max_new_tokens=12, do_sample=False)
                    assert torch.equal(found, expected)
            finally:
                is_over.set()

        def call() -> int:
            calls = 0
            while not is_over.is_set():
                torch.testing.assert_close(model(ids).logits.detach(), logits)
                calls += 1
            return calls

        assert in_threads(generate, call)[1] > 0


def test_two_wrappers_of_one_model(model: PreTrainedModel) -> None:
    ids = torch.tensor([ROW])
    expected = model.generate(ids, max_new_tokens=5, do_sample=False)
    with wrapped(model) as one, wrapped(model, chunk_tokens=4) as other:

        def generate(wrapper: PrefixCachedModel) -> None:
            for _ in range(4):
                assert torch.equal(wrapper.generate(ids, max_new_tokens=5, do_sample=False), expected)

        generate(one)
        generate(other)
        in_threads(lambda: generate(one), lambda: generate(other))
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), expected)


def test_closing_cancels_what_is_under_way(model: PreTrainedModel) -> None:
    cached = PrefixCachedModel(model, memory="1MiB", chunk_tokens=CHUNK)
    running = cached.submit(ROW, max_new_tokens=9, eos=())
    cached.engine.step()
    waiting = cached.submit(ROW, max_new_tokens=9, eos=())
    cached.close()
    assert running.finish_reason == waiting.finish_reason == "cancelled"
    assert not cached.engine.memory.tree.leases
    cached.check()
