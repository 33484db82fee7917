"""Log probabilities in OpenAI's two forms: of chats, and of completions."""

from __future__ import annotations

from collections.abc import Sequence

from kvtrie.api.engine.sampling.logprobs import ChosenLogprobs
from kvtrie.api.server.prompts import PromptText
from kvtrie.api.server.replies import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob

_REPLACEMENT = "\ufffd"


def chat_logprobs(chosen: Sequence[ChosenLogprobs], text: PromptText) -> ChatLogprobs:
    """Log probabilities of tokens of a chat's answer."""
    return ChatLogprobs(content=[_token(one, text) for one in chosen])


def completion_logprobs(
    chosen: Sequence[ChosenLogprobs], text: PromptText, offset: int
) -> CompletionLogprobs:
    """Log probabilities of tokens of a completion; the first one's text begins at `offset` of the choice's."""
    tokens = [text.spoken(one.token) for one in chosen]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[one.logprob for one in chosen],
        top_logprobs=[_by_text(one, text) for one in chosen],
        text_offset=offsets,
    )


def _by_text(one: ChosenLogprobs, text: PromptText) -> dict[str, float]:
    """The likeliest tokens and the chosen one; of several with the same text, e.g. `\ufffd`, the likeliest."""
    found: dict[str, float] = {}
    for token, logprob in [(one.token, one.logprob), *((top.token, top.logprob) for top in one.top)]:
        shown = text.spoken(token)
        found[shown] = max(logprob, found.get(shown, logprob))
    return found


def _token(one: ChosenLogprobs, text: PromptText) -> TokenLogprob:
    token = text.spoken(one.token)
    top = [
        TopLogprob(token=shown, logprob=other.logprob, bytes=_bytes(shown))
        for other in one.top
        for shown in [text.spoken(other.token)]
    ]
    return TokenLogprob(token=token, logprob=one.logprob, bytes=_bytes(token), top_logprobs=top)


def _bytes(token: str) -> list[int] | None:
    """A token's bytes; None for a part of a character, whose bytes its text does not say."""
    return None if _REPLACEMENT in token else list(token.encode())
