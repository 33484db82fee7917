"""Chats that were answered: a next turn continues the tokens of the turn before, and finds them in the tree.

A chat is sent anew with every turn, as text. An answer that is tokenized again may have other tokens than those
that the model chose, and the tree holds the chosen ones. So the tokens of answered chats are remembered by a digest
of their messages. A prompt whose text continues such a chat's text continues its tokens too; the text is the same.

A chat is found by its own tenant only, with the same salt, tools and variables of the template.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvtrie.api.huggingface.chat_prompt import ChatPrompt
from kvtrie.prefix_tree.keys import TokenArray

_SHORTEST_BYTES = 256
"""What an entry takes besides its text and tokens, about."""


class ChatDigest:
    """A digest of the messages so far. Takes time linear in what is added."""

    def __init__(self, tenant: str, cache_salt: str, besides: object) -> None:
        self._sum = hashlib.sha256(_canonical([tenant, cache_salt, besides]))

    def add(self, message: Mapping[str, Any]) -> bytes:
        """Adds one message, as the template gets it; the digest of all so far."""
        self._sum.update(b"\n" + _canonical(message))
        return self._sum.digest()

    def with_answer(self, text: str) -> bytes:
        """The digest of all so far and an answer; adds nothing."""
        copy = self._sum.copy()
        copy.update(b"\n" + _canonical({"role": "assistant", "content": text}))
        return copy.digest()


@dataclass(frozen=True, slots=True)
class _Chat:
    """An answered chat."""

    text: str
    """The prompt's, and the answer's."""
    tokens: TokenArray
    """Of both."""

    @property
    def size_bytes(self) -> int:
        return len(self.text) + self.tokens.nbytes + _SHORTEST_BYTES


class AnsweredChats:
    """Thread-safe. The chats used last are kept.

    Args:
        capacity_bytes: of texts and tokens; 0 remembers none.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._size_bytes = 0
        self._chats: OrderedDict[bytes, _Chat] = OrderedDict()
        self._lock = threading.Lock()

    def remember(
        self,
        digest: bytes,
        text: str,
        tokens: TokenArray,
        answer_tokens: Sequence[int],
        answer_text: str,
    ) -> None:
        """Remembers a chat.

        Args:
            digest: of its messages, the answer among them.
            text: what was answered.
            tokens: int32 `[tokens]`, its tokens.
            answer_tokens: without the one that ended the answer.
            answer_text: theirs.
        """
        chat = _Chat(text + answer_text, np.concatenate([tokens, np.asarray(answer_tokens, np.int32)]))
        if chat.size_bytes > self._capacity_bytes:
            return
        with self._lock:
            self._forget(digest)
            self._chats[digest] = chat
            self._size_bytes += chat.size_bytes
            while self._size_bytes > self._capacity_bytes:
                self._forget(next(iter(self._chats)))

    def continued(
        self,
        digests: Sequence[bytes],
        rendered: ChatPrompt,
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
    ) -> ChatPrompt:
        """A prompt of the same text whose tokens continue a remembered chat's, or `rendered` itself.

        Args:
            digests: of the chat up to each of its answers, in order.
            rendered: the prompt as the tokenizer has it.
            encode: tokens of text in the middle of a prompt.
            decode: text of tokens, special ones included.
        """
        for digest in reversed(digests):
            with self._lock:
                chat = self._chats.get(digest)
                if chat is not None:
                    self._chats.move_to_end(digest)
            if chat is None or not rendered.text.startswith(chat.text):
                continue
            known: list[int] = chat.tokens.tolist()
            if rendered.tokens[: len(known)] == known:
                return rendered
            joined = known + encode(rendered.text[len(chat.text) :])
            # A tokenizer may treat the beginning of a text in its own way; an answer may have tokens without text.
            if decode(joined) == decode(rendered.tokens):
                return ChatPrompt(rendered.text, joined)
        return rendered

    def _forget(self, digest: bytes) -> None:
        chat = self._chats.pop(digest, None)
        if chat is not None:
            self._size_bytes -= chat.size_bytes


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
