"""Bodies of replies, as OpenAI defines them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length"]


class ReplyBody(BaseModel):
    """What all replies have in common."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(ReplyBody):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(ReplyBody):
    """Any refusal."""

    error: ErrorDetail


class PromptTokensDetails(ReplyBody):
    """Where a prompt's tokens came from."""

    cached_tokens: int = Field(ge=0)


class Usage(ReplyBody):
    """Tokens of a request. Each prompt counts once, whatever `n` is."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(ReplyBody):
    """One of the likeliest tokens at a place."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """The token that was chosen, and the likeliest ones."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(ReplyBody):
    """Log probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(ReplyBody):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(ReplyBody):
    """One answer."""

    index: int = Field(ge=0)
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatReply(ReplyBody):
    """Reply of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChoice]
    usage: Usage


class Delta(ReplyBody):
    """A piece of the model's message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(ReplyBody):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(ReplyBody):
    """One event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(ReplyBody):
    """Log probabilities in the form of completions: parallel lists."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(ReplyBody):
    """One completion, or in a stream a piece of it."""

    index: int = Field(ge=0)
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None


class CompletionReply(ReplyBody):
    """Reply of `POST /v1/completions`, and one event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ModelCard(ReplyBody):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "kvtrie"
    root: str
    max_model_len: int = Field(ge=1)


class ModelList(ReplyBody):
    """Reply of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeReply(ReplyBody):
    """Reply of `POST /tokenize`."""

    count: int = Field(ge=0)
    max_model_len: int = Field(ge=1)
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeReply(ReplyBody):
    """Reply of `POST /detokenize`."""

    prompt: str


class Readiness(ReplyBody):
    """Reply of `GET /readyz`."""

    ready: bool
    engine: Literal["ok", "failed", "stopping"]


class Liveness(ReplyBody):
    """Reply of `GET /livez`."""

    live: Literal[True] = True


class PinCard(ReplyBody):
    """A pin in force."""

    id: str
    object: Literal["cache.pin"] = "cache.pin"
    name: str
    scope: str
    tokens: int = Field(ge=0, description="Tokens of the prompt.")
    pinned_tokens: int = Field(ge=0, description="Tokens of the whole chunks that it holds.")
    expires_at: float | None = Field(description="Unix seconds; null for never.")


class PinList(ReplyBody):
    """Reply of `GET /v1/cache/pins`."""

    object: Literal["list"] = "list"
    data: list[PinCard]


class PinDeleted(ReplyBody):
    """Reply of `DELETE /v1/cache/pins/{id}`."""

    id: str
    deleted: bool


class ExplainReply(BaseModel):
    """Reply of `POST /v1/cache/explain`, as `kvtrie explain --format json` prints it."""

    model_config = ConfigDict(extra="allow")

    format: Literal["kvtrie-explanation"]
    version: Literal[1]
    verdict: str
    meaning: str
    prompt_tokens: int = Field(ge=0)
    cached_tokens: int = Field(ge=0)
    whole_chunks: int = Field(ge=0)
    partial_tokens: int = Field(ge=0)
    chunk_tokens: int = Field(ge=1)
    scope: str | None
    divergence: dict[str, Any] | None
