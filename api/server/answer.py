"""An answer under way: its choices, what they used, and what it looks like in OpenAI's form."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel

from kvtrie.api.engine.sampling.logprobs import ChosenLogprobs
from kvtrie.api.engine.sampling.stop_strings import StoppedText
from kvtrie.api.http.tenants import Caller
from kvtrie.api.server.api_error import kvtrie_error
from kvtrie.api.server.checked_request import CheckedRequest, Served
from kvtrie.api.server.choice import Choice, Piece, merged
from kvtrie.api.server.generation import Generation, Wanted
from kvtrie.api.server.replies import (
    AnswerMessage,
    ChatChoice,
    ChatLogprobs,
    ChatReply,
    CompletionChoice,
    CompletionLogprobs,
    CompletionReply,
    PromptTokensDetails,
    Usage,
)
from kvtrie.api.server.serve_metrics import ServeMetrics
from kvtrie.api.server.shown_logprobs import chat_logprobs, completion_logprobs
from kvtrie.api.server.text_pool import TextPool

_DONE = b"data: [DONE]\n\n"


class Answer:
    """The choices of one request. `end` must be called, however the answer is left.

    Args:
        checked: what was asked for.
        caller: who asked.
        metrics: told of it at the end.
        served: has the tokenizer, and remembers answered chats.
        is_chat: whether it is answered as a chat, or as a completion.
    """

    def __init__(
        self, checked: CheckedRequest, caller: Caller, metrics: ServeMetrics, served: Served, *, is_chat: bool
    ) -> None:
        self.checked = checked
        self.id = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._caller = caller
        self._metrics = metrics
        self._chats, self._text = served.chats, served.text
        self._is_chat = is_chat
        self._created = int(time.time())
        self._choices: list[Choice] = []
        self._ended = False

    async def begin(self, generation: Generation, pool: TextPool) -> None:
        """Queues every choice.

        Args:
            generation: where to.
            pool: for work that grows with the prompts.

        Raises:
            KvtrieError: the engine refuses one; those before it are cancelled.
        """
        checked = self.checked
        texts = await pool.run(self._texts)
        for place, prompt in enumerate(checked.prompts):
            for sampling in checked.samplings:
                wanted = Wanted(
                    tokens=prompt,
                    tenant=self._caller.name,
                    max_new_tokens=checked.max_new_tokens[place],
                    sampling=sampling,
                    cache_salt=checked.cache_salt,
                    priority=checked.priority,
                )
                stream = await generation.begin(wanted)
                index = len(self._choices)
                self._choices.append(Choice(index, stream, texts[index], self._metrics.tokens_came))

    def _texts(self) -> list[StoppedText | None]:
        """The text of each choice, none of it yet. Looks at the end of its prompt, which may be long."""
        checked, tokenizer = self.checked, self._text.optional_tokenizer
        return [
            None
            if tokenizer is None
            else StoppedText(tokenizer, prompt.tolist(), checked.stops, least_tokens=sampling.min_tokens)
            for prompt in checked.prompts
            for sampling in checked.samplings
        ]

    def end(self) -> None:
        """Cancels what is not done, and counts what was."""
        if self._ended:
            return
        self._ended = True
        for choice in self._choices:
            choice.stream.end()
        self._metrics.ended(self._caller.name, self._choices, self.checked)
        self._remember()

    def _remember(self) -> None:
        """Lets a next turn continue the tokens of these answers."""
        chat = self.checked.chat
        if chat is None:
            return
        for choice in self._choices:
            tokens = choice.whole_tokens
            if tokens is not None:
                text = "".join(choice.said)
                self._chats.remember(
                    chat.digest.with_answer(text), chat.text, self.checked.prompts[0], tokens, text
                )

    async def all_of_it(self) -> None:
        """Waits until every choice has ended.

        Raises:
            KvtrieError: what ended a request.
        """
        async with aclosing(merged(self._choices)) as pieces:
            async for _ in pieces:
                pass

    def reply(self) -> ChatReply | CompletionReply:
        """The answer at once, when every choice has ended. Takes time linear in it: for a thread."""
        count = len(self._choices)
        said = [self._echo(choice.index) + "".join(choice.said) for choice in self._choices]
        reasons: list[Any] = [choice.ended_by for choice in self._choices]
        if self._is_chat:
            return ChatReply(
                id=self.id,
                created=self._created,
                model=self.checked.model,
                choices=[
                    ChatChoice(
                        index=i,
                        message=AnswerMessage(content=said[i]),
                        logprobs=self._chat_logprobs(self._choices[i].logprobs),
                        finish_reason=reasons[i],
                    )
                    for i in range(count)
                ],
                usage=self.usage(),
            )
        return CompletionReply(
            id=self.id,
            created=self._created,
            model=self.checked.model,
            choices=[
                CompletionChoice(
                    index=i,
                    text=said[i],
                    logprobs=self._completion_logprobs(self._choices[i].logprobs, len(self._echo(i))),
                    finish_reason=reasons[i],
                )
                for i in range(count)
            ],
            usage=self.usage(),
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events. An error after the first of them is an event too, the last one."""
        try:
            for index in range(len(self._choices)):
                if self._is_chat:
                    delta = {"role": "assistant", "content": ""}
                    yield self._event([self._part(index, None, None, delta=delta)])
                elif echo := self._echo(index):
                    yield self._event([self._part(index, None, None, text=echo)])
            async with aclosing(merged(self._choices)) as pieces:
                async for piece in pieces:
                    yield self._event([self._shown(piece)])
            if self.checked.includes_usage:
                yield self._event([], self.usage())
            yield _DONE
        except Exception as error:
            yield _sent(kvtrie_error(error).body)
        finally:
            self.end()

    def usage(self) -> Usage:
        """Tokens so far. A prompt counts once, and as cached is what its first choice found."""
        n = self.checked.n
        prompt_tokens = sum(map(len, self.checked.prompts))
        completion_tokens = sum(choice.tokens for choice in self._choices)
        cached = sum(choice.stream.completion.cached_tokens for choice in self._choices[::n])
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )

    def _echo(self, index: int) -> str:
        return self.checked.echoes[index // self.checked.n]

    def _shown(self, piece: Piece) -> dict[str, Any]:
        if self._is_chat:
            delta = {"content": piece.text} if piece.text else {}
            chat = self._chat_logprobs(piece.logprobs)
            return self._part(piece.choice, chat, piece.finish_reason, delta=delta)
        said = self._choices[piece.choice].said
        offset = len(self._echo(piece.choice)) + sum(map(len, said)) - len(piece.text)
        found = self._completion_logprobs(piece.logprobs, offset)
        return self._part(piece.choice, found, piece.finish_reason, text=piece.text)

    def _part(
        self, index: int, logprobs: BaseModel | None, reason: str | None, **what: Any
    ) -> dict[str, Any]:
        shown = None if logprobs is None else logprobs.model_dump()
        return {"index": index, **what, "logprobs": shown, "finish_reason": reason}

    def _chat_logprobs(self, chosen: Sequence[ChosenLogprobs]) -> ChatLogprobs | None:
        return chat_logprobs(chosen, self._text) if self._has_logprobs else None

    def _completion_logprobs(
        self, chosen: Sequence[ChosenLogprobs], offset: int
    ) -> CompletionLogprobs | None:
        return completion_logprobs(chosen, self._text, offset) if self._has_logprobs else None

    @property
    def _has_logprobs(self) -> bool:
        return self.checked.samplings[0].logprobs is not None

    def _event(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> bytes:
        event: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": self._created,
            "model": self.checked.model,
            "system_fingerprint": None,
            "choices": choices,
        }
        if self.checked.includes_usage:
            event["usage"] = None if usage is None else usage.model_dump()
        return _sent(event)


def _sent(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
