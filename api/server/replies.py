"""Bodies of replies, as OpenAI defines them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length"]


class Reply(BaseModel):
    """What all replies have in common."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Reply):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Reply):
    """Any refusal."""

    error: ErrorDetail


class PromptTokensDetails(Reply):
    """Where a prompt's tokens came from."""

    cached_tokens: int = Field(ge=0)


class Usage(Reply):
    """Tokens of a request. Each prompt counts once, whatever `n` is."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(Reply):
    """One of the likeliest tokens at a place."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """The token that was chosen, and the likeliest ones."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    """Log probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(Reply):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Reply):
    """One answer."""

    index: int = Field(ge=0)
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatReply(Reply):
    """Reply of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChoice]
    usage: Usage


class Delta(Reply):
    """A piece of the model's message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Reply):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Reply):
    """One event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(Reply):
    """Log probabilities in the form of completions: parallel lists."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Reply):
    """One completion, or in a stream a piece of it."""

    index: int = Field(ge=0)
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None


class CompletionReply(Reply):
    """Reply of `POST /v1/completions`, and one event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ModelCard(Reply):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "kvtrie"
    root: str
    max_model_len: int = Field(ge=1)


class ModelList(Reply):
    """Reply of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeReply(Reply):
    """Reply of `POST /tokenize`."""

    count: int = Field(ge=0)
    max_model_len: int = Field(ge=1)
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeReply(Reply):
    """Reply of `POST /detokenize`."""

    prompt: str


class Readiness(Reply):
    """Reply of `GET /readyz`."""

    ready: bool
    engine: Literal["ok", "failed", "stopping"]


class Liveness(Reply):
    """Reply of `GET /livez`."""

    live: Literal[True] = True


class PinCard(Reply):
    """A pin in force."""

    id: str
    object: Literal["cache.pin"] = "cache.pin"
    name: str
    scope: str
    tokens: int = Field(ge=0, description="Tokens of the prompt.")
    pinned_tokens: int = Field(ge=0, description="Tokens of the whole chunks that it holds.")
    expires_at: float | None = Field(description="Unix seconds; null for never.")


class PinList(Reply):
    """Reply of `GET /v1/cache/pins`."""

    object: Literal["list"] = "list"
    data: list[PinCard]


class PinDeleted(Reply):
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
