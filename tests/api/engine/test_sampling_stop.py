"""Stop strings: the completion ends at the token that completes one; text before it, nothing of it is streamed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from kvtrie.api import PrefixCachedModel, Sampling
from kvtrie.api.engine.sampling.stop_strings import StoppedText, StopStrings
from tests.api.balance import assert_balanced, greedy, run_to_the_end, wrapped
from tests.api.lower_tiers import small_model
from tests.api.tokenizers_of_each_kind import KINDS, TEXTS, byte_level, sentencepiece_bpe

NEW = 24


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]()


def plain(tokenizer: Any, text: str) -> list[int]:
    """Token ids without special ones."""
    if hasattr(tokenizer, "all_special_ids"):
        return list(tokenizer.encode(text, add_special_tokens=False))
    return list(tokenizer.encode(text))


def streamed(text: StoppedText, tokens: list[int]) -> tuple[list[str], int]:
    """Pieces of the text until it is stopped, and how many tokens that took."""
    pieces = []
    for count, token in enumerate(tokens, 1):
        pieces.append(text.add(token))
        if text.stopped_by is not None:
            return pieces, count
    return [*pieces, text.finish()], len(tokens)


def decoded(tokenizer: Any, prompt: list[int], tokens: list[int]) -> str:
    """What `tokens` add to the text of `prompt`, all decoded at once, without characters that are incomplete."""
    options = {"skip_special_tokens": True} if hasattr(tokenizer, "all_special_ids") else {}
    before = tokenizer.decode(prompt, **options)
    return str(tokenizer.decode(prompt + tokens, **options)[len(before) :]).rstrip("\ufffd")


def test_the_token_that_completes_it_ends_the_text(tokenizer: Any) -> None:
    """Stop strings cut from the text at random, over every kind of tokenizer. What is right is found by decoding
    all tokens again for every token."""
    chance = random.Random(1)
    prompt = plain(tokenizer, "before it")
    for text in TEXTS:
        tokens = plain(tokenizer, text + " " + text)
        whole = decoded(tokenizer, prompt, tokens)
        for _ in range(12):
            start = chance.randrange(len(whole))
            stop = whole[start : start + chance.randrange(1, 6)]
            if "\ufffd" in stop or tokenizer_rewrites(tokenizer):
                continue
            count = next(
                (n for n in range(1, len(tokens) + 1) if stop in decoded(tokenizer, prompt, tokens[:n])), None
            )
            assert count is not None
            pieces, taken = streamed(StoppedText(tokenizer, prompt, [stop]), tokens)
            assert taken == count
            assert "".join(pieces) == whole[: whole.index(stop)]
            pieces, taken = streamed(StoppedText(tokenizer, prompt, [stop], included=True), tokens)
            assert taken == count
            assert "".join(pieces) == whole[: whole.index(stop) + len(stop)]


def tokenizer_rewrites(tokenizer: Any) -> bool:
    """Whether decoding a token may change the text before it."""
    return bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))


def test_a_byte_token_completes_it_at_once() -> None:
    """Where a newline is a byte token, its text may still change with the next token; not if none follows."""
    tokenizer = sentencepiece_bpe()
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    text = StoppedText(tokenizer, plain(tokenizer, "x"), ["\n"])
    text.add(plain(tokenizer, "y")[-1])
    text.add(newline)
    assert text.stopped_by == "\n"


@pytest.mark.parametrize(
    ("strings", "text", "before", "found"),
    [
        (["END"], "the ENd and the END.", "the ENd and the ", "END"),
        (["aab"], "aaaaab", "aaa", "aab"),
        (["abab", "b"], "aabab", "aa", "b"),
        (["bc", "abcd"], "xabcd", "xa", "bc"),
        (["bcd", "abcd"], "xabcd", "x", "abcd"),
        (["nothing"], "some noth", "some noth", None),
        (["\n\n", "\nUser:"], "one\nUser two\n\nthree", "one\nUser two", "\n\n"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_the_string_that_is_complete_first(
    strings: list[str], text: str, before: str, found: str | None, size: int
) -> None:
    stops, seen = StopStrings(strings), ""
    for start in range(0, len(text), size):
        piece = text[start : start + size]
        if (hit := stops.find(piece)) is not None:
            string, end = hit
            assert string == found
            assert (seen + piece[:end])[: -len(string)] == before
            return
        seen += piece
        held = max(
            (n for string in strings for n in range(len(string)) if seen.endswith(string[:n])), default=0
        )
        assert stops.held == held
    assert found is None


def test_no_beginning_of_a_stop_string_is_said_before_it_is_decided() -> None:
    tokenizer = byte_level()
    prompt, tokens = plain(tokenizer, "a"), plain(tokenizer, " one\nUse two\nUser: three")
    text, said = StoppedText(tokenizer, prompt, ["\nUser:"]), ""
    for token in tokens:
        said += text.add(token)
        assert not any(said.endswith("\nUser:"[:n]) for n in range(1, 6))
        if text.stopped_by:
            break
    assert said == " one\nUse two"


def test_strings_that_begin_before_the_least_number_of_tokens() -> None:
    tokenizer = byte_level()
    tokens = plain(tokenizer, "xxxxxxxx")
    pieces, taken = streamed(StoppedText(tokenizer, plain(tokenizer, "a"), ["xx"], least_tokens=3), tokens)
    width = len(tokenizer.decode(tokens[:1]))
    assert taken == 3 + -(-2 // width)
    assert "".join(pieces) == "x" * (3 * width)


def test_linear_time_in_tokens() -> None:
    """Work per token, counted in calls of `decode` and characters compared, does not grow with their number."""

    class Counting:
        def __init__(self) -> None:
            self.inner, self.counts = byte_level(), Counter[str]()

        def decode(self, tokens: list[int]) -> str:
            self.counts["tokens"] += len(tokens)
            return str(self.inner.decode(tokens))

    def work(count: int) -> int:
        tokenizer = Counting()
        text = StoppedText(tokenizer, [70], ["a" * 30 + "b"])
        letter = tokenizer.inner.convert_tokens_to_ids("a")
        said = sum(len(text.add(letter)) for _ in range(count))
        assert said == count - 30
        return tokenizer.counts["tokens"]

    assert work(4000) < 2.2 * work(2000)


# ---- whole requests


@pytest.fixture(scope="module")
def cached() -> Iterator[PrefixCachedModel]:
    tokenizer = byte_level()
    with wrapped(small_model(vocabulary=len(tokenizer)), tokenizer=tokenizer) as wrapper:
        yield wrapper


def test_a_request_ends_at_its_stop_string(cached: PrefixCachedModel) -> None:
    tokenizer = cached.tokenizer
    row = list(tokenizer.encode("The quick brown fox jumps"))
    tokens = greedy(cached.model, row, NEW)
    whole = decoded(tokenizer, row, tokens)
    middle = next(i for i in range(len(whole) // 2, len(whole)) if "\ufffd" not in whole[i : i + 3])
    stop = whole[middle : middle + 3]
    count = next(n for n in range(1, NEW + 1) if stop in decoded(tokenizer, row, tokens[:n]))
    for included in (False, True):
        completion = cached.submit(row, max_new_tokens=NEW, eos=(), stop=stop, include_stop=included)
        run_to_the_end(cached)
        assert completion.tokens == tokens[:count]
        assert (completion.finish_reason, completion.stopped_by) == ("stop", stop)
        assert completion.text == whole[: whole.index(stop) + included * len(stop)]
    pieces = list(cached.stream("The quick brown fox jumps", max_new_tokens=NEW, eos=(), stop=[stop, "zzz"]))
    assert "".join(pieces) == whole[: whole.index(stop)]  # type: ignore[arg-type]
    assert_balanced(cached)


def test_a_request_that_meets_no_stop_string(cached: PrefixCachedModel) -> None:
    row = plain(cached.tokenizer, "The quick brown fox jumps")
    tokens = greedy(cached.model, row, NEW)
    completion = cached.submit(row, max_new_tokens=NEW, eos=(), stop=["no such text"])
    run_to_the_end(cached)
    assert (completion.tokens, completion.finish_reason) == (tokens, "length")
    whole = cached.tokenizer.decode(row + tokens, skip_special_tokens=True)
    assert completion.text == whole[len(cached.tokenizer.decode(row)) :]
    assert completion.stopped_by is None


def test_a_stop_string_that_comes_too_early(cached: PrefixCachedModel) -> None:
    row = plain(cached.tokenizer, "The quick brown fox jumps")
    tokens = greedy(cached.model, row, NEW)
    first = decoded(cached.tokenizer, row, tokens[:4])[:1]
    completion = cached.submit(row, max_new_tokens=NEW, eos=(), stop=first, sampling=Sampling(min_tokens=4))
    run_to_the_end(cached)
    assert len(completion.tokens) > 4
