"""One conversation with a wrapped model: each turn's prompt continues the turn before."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from kvtrie.api.engine.completion_pieces import completion_pieces
from kvtrie.api.engine.request import Completion
from kvtrie.api.engine.sampler import Sampling
from kvtrie.api.engine.text_stream import TextStream
from kvtrie.api.huggingface.cached_model import PrefixCachedModel
from kvtrie.api.huggingface.chat_prompt import ChatPrompt, first_prompt, next_prompt
from kvtrie.prefix_tree.errors import InputError


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of the user, and what was answered."""

    message: str
    prompt: ChatPrompt
    answer: list[int]
    """Tokens of the answer, without the one that ended it."""


class ChatSession:
    """A conversation that the tree keeps: what earlier turns computed is not computed again.

    Args:
        cached: a wrapped model whose tokenizer has a chat template.
        system: the system prompt; empty for none.
        max_new_tokens: most tokens of an answer.
        sampling: how tokens are chosen; default greedy.

    Raises:
        InputError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        cached: PrefixCachedModel,
        system: str = "",
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
    ) -> None:
        if not getattr(cached.tokenizer, "chat_template", None):
            raise InputError("a chat needs a tokenizer with a chat template, and this model has none")
        self._cached = cached
        self._system = system
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling
        self._turns: list[Turn] = []
        self.completion: Completion | None = None
        """Of the message that was answered last, or is being answered; None where none was accepted."""

    def answer(self, message: str) -> Generator[str, None, None]:
        """Yields the answer's text in pieces, as it is computed.

        Closing the iterator ends the answer: its lease is given back, and the conversation goes on from what there
        is of it. A message without any answer is left out of the conversation.

        Raises:
            InputError: the messages cannot be rendered, or are more than the model has positions for.
            PoolExhausted: they do not fit the pool.
            KvtrieError: what ended the request.
        """
        self.completion = None
        prompt = self._prompt(message)
        completion = self.completion = self._cached.submit(
            prompt.tokens, max_new_tokens=self._max_new_tokens, sampling=self._sampling
        )
        try:
            for piece in completion_pieces(self._cached.engine, completion, self._cached.tokenizer):
                yield str(piece)
        finally:
            self._cached.engine.discard([completion])
            if completion.tokens and completion.error is None:
                ended = completion.tokens[-1] in completion.request.eos
                self._turns.append(Turn(message, prompt, completion.tokens[: -1 if ended else None]))

    def clear(self) -> None:
        """Forgets the conversation, not the system prompt. Its chunks stay in the tree until they are evicted."""
        self._turns.clear()

    def _prompt(self, message: str) -> ChatPrompt:
        tokenizer = self._cached.tokenizer
        messages = [{"role": "system", "content": self._system}] if self._system else []
        text = ""
        for turn in self._turns:
            text = self._text(turn)
            messages += [{"role": "user", "content": turn.message}, {"role": "assistant", "content": text}]
        messages.append({"role": "user", "content": message})
        if not self._turns:
            return first_prompt(tokenizer, messages)
        last = self._turns[-1]
        return next_prompt(tokenizer, messages, last.prompt, last.answer, text)

    def _text(self, turn: Turn) -> str:
        stream = TextStream(self._cached.tokenizer, turn.prompt.tokens)
        return "".join(stream.add(token) for token in turn.answer) + stream.finish()
