"""The text of a completion while its tokens are still being computed.

Tokens cannot be decoded one by one: a character may be spread over several of them, and the space before a word
may depend on there being a word before it. Decoding all of them again for each new one takes quadratic time. So a
*window* of the last tokens is decoded, which begins in the prompt:

    prompt and completion   ..  t  t  t  t  t  t  t  t  t
    window                            [t  t  t  t  t  t]
    text of the window                 "before, of the ca"     new: "a"
                                        └──── said ────┘

The window is cut on its left wherever the shorter one gives the same text at its end.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

CONTEXT_TOKENS = 8
"""A window is cut to this many tokens, or up to twice as many where that falls inside a character."""
_CUT_AT_TOKENS = 2 * CONTEXT_TOKENS
"""A window of more tokens is cut once all its text was returned. One of twice as many is cut at the next whole
character."""
_REPLACEMENT = "\ufffd"
_CHARACTER_BYTES = 4
"""Most bytes of a character. An incomplete one becomes as many replacement characters as it has bytes, or one."""
_MAY_BE_REWRITTEN = re.compile(r" (n'?|'[vr]?)?\Z")
"""Beginnings of what transformers' clean-up joins to the word before it: ` .`, ` ' `, ` n't`, ` 've` ..."""
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""How tokenizers with byte fallback spell the token of one byte."""


class TokenDecoder:
    """Decodes tokens with any object that has `decode`.

    Special tokens are left out where its `decode` takes `skip_special_tokens`, as transformers' tokenizers do.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._skips = "skip_special_tokens" in inspect.signature(tokenizer.decode).parameters
        self._spell = getattr(tokenizer, "convert_ids_to_tokens", None)
        self.cleans_up = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        """Whether spaces before punctuation are removed once the punctuation follows."""

    def text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        if self._skips:
            return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))
        return str(self._tokenizer.decode(list(tokens)))

    def is_special(self, token: int) -> bool:
        """Whether a token is left out."""
        return self._skips and not self.text([token]) and bool(self._tokenizer.decode([token]))

    def is_byte(self, token: int) -> bool:
        """Whether a token is one byte of a character that the vocabulary lacks (byte fallback)."""
        return self._spell is not None and _BYTE_TOKEN.fullmatch(str(self._spell(token))) is not None


class TextStream:
    """Decodes a completion token by token, in time that is linear in their number.

    The pieces that `add` and `finish` return are, joined, the text that decoding prompt and completion together
    adds to the prompt's own. Two exceptions, where a tokenizer changes earlier text and the pieces keep it: bytes
    that are no valid UTF-8 after more than 16 byte tokens (byte fallback decodes such a stretch as a whole;
    shorter ones are returned when they end), and quotation marks in a row where a tokenizer cleans up spaces.

    Args:
        tokenizer: anything with `decode`.
        prompt: token ids that the completion continues.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self._decoder = TokenDecoder(tokenizer)
        self._window = self._end_of(prompt)
        self._text = self._decoder.text(self._window)
        self._said = len(self._text)
        self._cut_at = max(_CUT_AT_TOKENS, len(self._window))
        if self._cut_at > 2 * _CUT_AT_TOKENS:
            self._cut()

    def add(self, token: int) -> str:
        """The text that has become certain with `token`; empty while a character is incomplete."""
        text = self._decoder.text([*self._window, token])
        if text == self._text and self._decoder.is_special(token):
            return ""
        self._window.append(token)
        self._text = text
        piece = self._say(self._certain())
        if self._waits_too_long or (len(self._window) > self._cut_at and self._said == len(text)):
            self._cut()
        return piece

    def finish(self) -> str:
        """The rest of the text when no token follows; incomplete characters are U+FFFD."""
        return self._say(len(self._text))

    def _say(self, end: int) -> str:
        piece = self._text[self._said : end]
        self._said = max(self._said, end)
        return piece

    @property
    def _waits_too_long(self) -> bool:
        """Whether a character that is still incomplete is none."""
        return len(self._window) > 2 * self._cut_at + _CHARACTER_BYTES

    def _certain(self) -> int:
        """The length of the text that no further token changes."""
        certain = len(self._text.rstrip(_REPLACEMENT))
        if self._waits_too_long:
            return max(certain, len(self._text) - _CHARACTER_BYTES + 1)
        if len(self._window) <= 2 * self._cut_at:
            settled = self._before_last_bytes()
            if len(settled) < len(self._window):
                certain = min(certain, len(self._decoder.text(settled)))
        if self._decoder.cleans_up and certain == len(self._text):
            rewritten = _MAY_BE_REWRITTEN.search(self._text)
            certain = certain if rewritten is None else rewritten.start()
        return certain

    def _before_last_bytes(self) -> list[int]:
        """The window without the byte tokens at its end."""
        end = len(self._window)
        while end and self._decoder.is_byte(self._window[end - 1]):
            end -= 1
        return self._window[:end]

    def _end_of(self, prompt: Sequence[int]) -> list[int]:
        """The last tokens of a prompt, enough of them for the text behind them not to depend on those before."""
        kept = CONTEXT_TOKENS
        while kept < len(prompt):
            # Without text, the next word would be taken for the first one. A stretch of byte tokens is decoded as a
            # whole, so it is not cut.
            if self._decoder.text(prompt[-kept:]) and not self._decoder.is_byte(prompt[-kept]):
                break
            kept *= 2
        return [token for token in prompt[-kept:] if not self._decoder.is_special(token)]

    def _cut(self) -> None:
        """Shortens the window, unless no shorter one gives the same text at its end."""
        unsaid = len(self._text) - self._said
        # With a character that was said, without which the next word would be taken for the first one.
        tail = self._text[max(0, self._said - 1) :]
        for kept in range(CONTEXT_TOKENS, 2 * CONTEXT_TOKENS + 1):
            text = self._decoder.text(self._window[-kept:])
            if text.endswith(tail):
                self._window = self._window[-kept:]
                self._text, self._said, self._cut_at = text, len(text) - unsaid, _CUT_AT_TOKENS
                return
        self._cut_at = 2 * len(self._window)
