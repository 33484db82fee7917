"""An answer under way: its choices, what they used, and what it looks like in OpenAI's form."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from kvtrie.api.engine.text_stream import TextStream
from kvtrie.api.http.tenants import Caller
from kvtrie.api.server.answered_chats import AnsweredChats
from kvtrie.api.server.api_error import kvtrie_error
from kvtrie.api.server.choice import Choice, Piece, merged
from kvtrie.api.server.generation import Generation, Wanted
from kvtrie.api.server.job import Job
from kvtrie.api.server.replies import (
    AnswerMessage,
    ChatChoice,
    ChatReply,
    CompletionChoice,
    CompletionReply,
    PromptTokensDetails,
    Usage,
)
from kvtrie.api.server.serve_metrics import ServeMetrics

_DONE = b"data: [DONE]\n\n"


class Answer:
    """The choices of one job. `end` must be called, however the answer is left.

    Args:
        job: what was asked for.
        caller: who asked.
        metrics: told of it at the end.
        chats: told of answers at the end.
        is_chat: whether it is answered as a chat, or as a completion.
    """

    def __init__(
        self, job: Job, caller: Caller, metrics: ServeMetrics, chats: AnsweredChats, *, is_chat: bool
    ) -> None:
        self.job = job
        self.id = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._caller = caller
        self._metrics = metrics
        self._chats = chats
        self._is_chat = is_chat
        self._created = int(time.time())
        self._choices: list[Choice] = []
        self._ended = False

    async def begin(self, generation: Generation, tokenizer: Any) -> None:
        """Queues every choice.

        Raises:
            KvtrieError: the engine refuses one; those before it are cancelled.
        """
        job = self.job
        for place, prompt in enumerate(job.prompts):
            for sampling in job.samplings:
                wanted = Wanted(
                    tokens=prompt,
                    tenant=self._caller.name,
                    max_new_tokens=job.max_new_tokens[place],
                    eos=job.eos,
                    sampling=sampling,
                    cache_salt=job.cache_salt,
                )
                stream = await generation.begin(wanted)
                text = None if tokenizer is None else TextStream(tokenizer, prompt)
                self._choices.append(Choice(len(self._choices), stream, text, job.stops))

    def end(self) -> None:
        """Cancels what is not done, and counts what was."""
        if self._ended:
            return
        self._ended = True
        for choice in self._choices:
            choice.stream.end()
        self._metrics.ended(self._caller.name, self._choices, self.job)
        self._remember()

    def _remember(self) -> None:
        """Lets a next turn continue the tokens of these answers."""
        chat = self.job.chat
        if chat is None:
            return
        for choice in self._choices:
            tokens = choice.whole_tokens
            if tokens is not None:
                text = "".join(choice.said)
                self._chats.remember(chat.digest.with_answer(text), chat.prompt, tokens, text)

    async def whole(self) -> ChatReply | CompletionReply:
        """The answer at once.

        Raises:
            KvtrieError: what ended a request.
        """
        async with aclosing(merged(self._choices)) as pieces:
            async for _ in pieces:
                pass
        count = len(self._choices)
        said = [self._echo(choice.index) + "".join(choice.said) for choice in self._choices]
        reasons: list[Any] = [choice.ended_by for choice in self._choices]
        if self._is_chat:
            return ChatReply(
                id=self.id,
                created=self._created,
                model=self.job.model,
                choices=[
                    ChatChoice(index=i, message=AnswerMessage(content=said[i]), finish_reason=reasons[i])
                    for i in range(count)
                ],
                usage=self.usage(),
            )
        return CompletionReply(
            id=self.id,
            created=self._created,
            model=self.job.model,
            choices=[CompletionChoice(index=i, text=said[i], finish_reason=reasons[i]) for i in range(count)],
            usage=self.usage(),
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events. An error after the first of them is an event too, the last one."""
        try:
            for index in range(len(self._choices)):
                if self._is_chat:
                    yield self._event([self._chat_piece(index, {"role": "assistant", "content": ""}, None)])
                elif echo := self._echo(index):
                    yield self._event([self._completion_piece(index, echo, None)])
            async with aclosing(merged(self._choices)) as pieces:
                async for piece in pieces:
                    yield self._event([self._shown(piece)])
            if self.job.includes_usage:
                yield self._event([], self.usage())
            yield _DONE
        except Exception as error:
            yield _sent(kvtrie_error(error).body)
        finally:
            self.end()

    def usage(self) -> Usage:
        """Tokens so far. A prompt counts once, and as cached is what its first choice found."""
        n = self.job.n
        prompt_tokens = sum(map(len, self.job.prompts))
        completion_tokens = sum(choice.tokens for choice in self._choices)
        cached = sum(choice.stream.completion.cached_tokens for choice in self._choices[::n])
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )

    def _echo(self, index: int) -> str:
        return self.job.echoes[index // self.job.n]

    def _shown(self, piece: Piece) -> dict[str, Any]:
        if self._is_chat:
            delta = {"content": piece.text} if piece.text else {}
            return self._chat_piece(piece.choice, delta, piece.finish_reason)
        return self._completion_piece(piece.choice, piece.text, piece.finish_reason)

    def _chat_piece(self, index: int, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}

    def _completion_piece(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}

    def _event(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> bytes:
        event: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": self._created,
            "model": self.job.model,
            "system_fingerprint": None,
            "choices": choices,
        }
        if self.job.includes_usage:
            event["usage"] = None if usage is None else usage.model_dump()
        return _sent(event)


def _sent(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
