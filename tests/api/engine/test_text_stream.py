"""Text streams over tokenizers of every kind: the pieces are what decoding everything at once gives in context."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from kvtrie.api.engine.text_stream import TextStream
from tests.api.tokenizers_of_each_kind import KINDS, SPECIAL, TEXTS, byte_level, sentencepiece_bpe


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]()


def decode(tokenizer: Any, tokens: list[int]) -> str:
    if hasattr(tokenizer, "all_special_ids"):
        return str(tokenizer.decode(tokens, skip_special_tokens=True))
    return str(tokenizer.decode(tokens))


def in_context(tokenizer: Any, prompt: list[int], tokens: list[int]) -> str:
    """What `tokens` add to the text of `prompt`, all decoded at once."""
    return decode(tokenizer, prompt + tokens)[len(decode(tokenizer, prompt)) :]


def streamed(tokenizer: Any, prompt: list[int], tokens: list[int]) -> list[str]:
    stream = TextStream(tokenizer, prompt)
    return [*map(stream.add, tokens), stream.finish()]


def plain(tokenizer: Any, text: str) -> list[int]:
    """Token ids without special ones."""
    if hasattr(tokenizer, "all_special_ids"):
        return list(tokenizer.encode(text, add_special_tokens=False))
    return list(tokenizer.encode(text))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_every_text_cut_anywhere_into_prompt_and_completion(tokenizer: Any, text: str) -> None:
    tokens = tokenizer.encode("before it, " + text + " " + text)
    for cut in range(1, len(tokens)):
        if decode(tokenizer, tokens[:cut]).endswith("\ufffd"):
            continue  # No text prompt ends inside a character.
        pieces = streamed(tokenizer, tokens[:cut], tokens[cut:])
        assert "".join(pieces) == in_context(tokenizer, tokens[:cut], tokens[cut:])


def test_incomplete_last_bytes(tokenizer: Any) -> None:
    """Completions that end anywhere, inside a character too."""
    prompt, tokens = tokenizer.encode("see"), plain(tokenizer, "日😀本 é 👩‍👩‍👧‍👦!")
    for end in range(len(tokens)):
        assert "".join(streamed(tokenizer, prompt, tokens[:end])) == in_context(
            tokenizer, prompt, tokens[:end]
        )


@pytest.mark.parametrize("seed", range(20))
def test_tokens_that_no_text_has(tokenizer: Any, seed: int) -> None:
    """Random ids, as a model with random weights gives: special ones, unfinished bytes, word ends without words."""
    generator = random.Random(seed)
    prompt = tokenizer.encode(generator.choice(TEXTS)[: generator.randrange(1, 40)])
    tokens = [generator.randrange(len(tokenizer)) for _ in range(80)]
    assert "".join(streamed(tokenizer, prompt, tokens)) == in_context(tokenizer, prompt, tokens)


def test_no_piece_ends_inside_a_character(tokenizer: Any) -> None:
    for text in TEXTS:
        pieces = streamed(tokenizer, tokenizer.encode("a"), plain(tokenizer, text))
        assert not any("\ufffd" in piece for piece in pieces)


def test_many_characters_that_the_vocabulary_lacks() -> None:
    """A tokenizer with byte fallback gives them whole, however many there are and whatever is before them."""
    tokenizer = sentencepiece_bpe()
    for before in range(40):
        prompt, tokens = plain(tokenizer, "q" * before), plain(tokenizer, "日本語のテキストé😀" * 20)
        pieces = streamed(tokenizer, prompt, tokens)
        assert "".join(pieces) == in_context(tokenizer, prompt, tokens)
        assert max(map(len, pieces)) < 20, "they are not kept to the end"


def test_a_long_prompt_of_such_characters() -> None:
    tokenizer = sentencepiece_bpe()
    # Without the space that the tokenizer puts first: the stretch of bytes goes on from the prompt.
    prompt, tokens = plain(tokenizer, "日本語" * 100), plain(tokenizer, "テキスト" * 20)[1:]
    pieces = streamed(tokenizer, prompt, tokens)
    assert "".join(pieces) == "テキスト" * 20
    assert "テ" in "".join(pieces[:60]), "they are not kept to the end"


def test_tokens_outside_the_tokenizer_s_vocabulary() -> None:
    """A model may have more than its tokenizer: such a token has no text, and is no beginning of one either."""
    tokenizer = sentencepiece_bpe()
    prompt, word = plain(tokenizer, "quick"), plain(tokenizer, "brown")
    for count in (1, 20, 100):
        assert "".join(streamed(tokenizer, prompt, [len(tokenizer) + 7] * count + word)) == " brown"


def test_the_first_word_keeps_its_space() -> None:
    tokenizer = sentencepiece_bpe()
    prompt, word = plain(tokenizer, "quick"), plain(tokenizer, "brown")
    assert tokenizer.decode(word) == "brown"
    assert "".join(streamed(tokenizer, prompt, word)) == " brown"
    # Behind special tokens alone, it is the text's first word.
    special = tokenizer.convert_tokens_to_ids(SPECIAL)
    assert "".join(streamed(tokenizer, special, word)) == "brown"
    # However many there are behind the prompt's text, it is not.
    assert "".join(streamed(tokenizer, prompt + 20 * special, word)) == " brown"


def test_special_tokens_have_no_text() -> None:
    tokenizer = byte_level()
    special = tokenizer.convert_tokens_to_ids(SPECIAL)
    before, after = plain(tokenizer, "a 日"), plain(tokenizer, "本 b")
    pieces = streamed(tokenizer, [1], [*special, *before, *special, *special, *after, *special])
    assert "".join(pieces) == "a 日本 b"


def test_pieces_come_with_their_tokens() -> None:
    """Nothing is held back that is certain: each letter of a byte-level tokenizer comes at once."""
    tokenizer = byte_level()
    letters = tokenizer.convert_tokens_to_ids(list("zqzq"))
    assert streamed(tokenizer, [1], letters) == ["z", "q", "z", "q", ""]


class Counting:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.decoded = Counter[str]()
        self.convert_ids_to_tokens = tokenizer.convert_ids_to_tokens

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        self.decoded["tokens"] += len(tokens)
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))


def _texts(tokenizer: Any) -> list[int]:
    return [token for text in TEXTS for token in plain(tokenizer, text)]


@pytest.mark.parametrize("make", [byte_level, sentencepiece_bpe])
@pytest.mark.parametrize(
    "tokens_of",
    [
        _texts,
        lambda tokenizer: tokenizer.convert_tokens_to_ids(SPECIAL),
        lambda tokenizer: plain(tokenizer, "日")[-1:],
        lambda tokenizer: plain(tokenizer, "a日本語😀")[-9:],
    ],
    ids=["texts", "special tokens", "continuation bytes for ever", "byte tokens for ever"],
)
def test_the_work_is_linear_in_the_tokens(make: Any, tokens_of: Any) -> None:
    """A window of at most some tens of tokens is decoded for each one, whatever comes."""
    tokenizer = make()
    work = []
    for count in (400, 1600):
        counting, part = Counting(tokenizer), tokens_of(tokenizer)
        streamed(counting, tokenizer.encode("a prompt"), (part * count)[:count])
        work.append(counting.decoded["tokens"] / count)
    assert max(work) < 150
    assert work[1] < 1.2 * work[0]
