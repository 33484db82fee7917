"""Bodies of requests, as OpenAI defines them, and a few fields that other servers have besides.

Fields are strict: a number in quotes is no number. A field that is not listed is refused, because a misspelt one
would otherwise change nothing and say nothing. Fields that OpenAI has and that mean nothing here are listed as
ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_CHOICES = 128
"""Of one request: prompts times `n`."""
MOST_STOPS = 16
MOST_LOGPROBS = 20

Number = Annotated[float, Field(allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
TokenName = Annotated[str, Field(pattern="^[0-9]{1,9}$")]
Bias = Annotated[Number, Field(ge=-100, le=100)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]


class Body(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    """What a stream holds besides its pieces."""

    include_usage: bool = False
    include_obfuscation: bool | None = Field(None, description="Ignored: nothing is padded.")


class ContentPart(Body):
    """A part of a message; text only."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One message. Fields that are not listed are passed to the chat template."""

    model_config = ConfigDict(extra="allow")

    role: str = Field(min_length=1, max_length=64)
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class FunctionTool(Body):
    """A tool, as it is passed to the chat template."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: dict[str, Any]


class SamplingFields(Body):
    """Fields that chats and completions share."""

    model: str | None = Field(None, description="A served name; the first one where it is left out.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(1, ge=1, le=MOST_CHOICES)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = Field(None, ge=-(1 << 63), le=(1 << 63) - 1)
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 and -1 are off.")
    min_p: Number | None = Field(None, ge=0, le=1)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    repetition_penalty: Number | None = Field(None, gt=0, le=100)
    logit_bias: dict[TokenName, Bias] | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=64)] | None = None
    ignore_eos: bool | None = Field(False, description="Go on beyond tokens that end a completion.")
    min_tokens: int | None = Field(None, ge=0, description="Nothing ends a completion before so many tokens.")
    priority: int | None = Field(
        None, ge=-(1 << 31), le=(1 << 31) - 1, description="Smaller ones of the same tenant come first."
    )
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="Requests share cached prefixes only with requests that have the same salt.",
    )
    prompt_cache_key: str | None = Field(
        None, max_length=512, description="Ignored: a prefix is found by its tokens, whatever the key."
    )
    user: str | None = Field(None, max_length=512, description="Ignored: the API key names the tenant.")
    metadata: dict[str, Any] | None = Field(None, description="Ignored.")
    safety_identifier: str | None = Field(None, description="Ignored.")
    service_tier: str | None = Field(None, description="Ignored.")
    store: bool | None = Field(None, description="Ignored: answers are never kept.")


class NamedSchema(Body):
    """A JSON schema, as OpenAI wraps it."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Ignored: every schema is enforced.")


class ResponseFormat(Body):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class ChatRequest(SamplingFields):
    """Body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, description="`max_completion_tokens` by its former name.")
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    tools: list[FunctionTool] | None = Field(None, description="Passed to the chat template.")
    tool_choice: Literal["none", "auto"] | None = Field(
        None, description="`none` leaves the tools out; calls are returned as text."
    )
    parallel_tool_calls: bool | None = Field(None, description="Ignored.")
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Further variables of the chat template, e.g. `enable_thinking`."
    )
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    reasoning_effort: str | None = Field(None, description="Passed to the chat template.")
    verbosity: str | None = Field(None, description="Ignored.")
    modalities: list[Literal["text"]] | None = None


class CompletionRequest(SamplingFields):
    """Body of `POST /v1/completions`."""

    prompt: (
        str
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1)]
    )
    max_tokens: int | None = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: bool | None = Field(False, description="Begin each choice's text with the prompt.")
    best_of: int | None = Field(None, description="Only `n` is served.", ge=1, le=MOST_CHOICES)
    suffix: None = Field(None, description="Not served.")


class TokenizeRequest(Body):
    """Body of `POST /tokenize`: either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    tools: list[FunctionTool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = False


class DetokenizeRequest(Body):
    """Body of `POST /detokenize`."""

    model: str | None = None
    tokens: list[Token]


class CachedPrompt(Body):
    """A prompt of which something is asked: exactly one of `prompt`, `messages` and `tokens`."""

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    tokens: Annotated[list[Token], Field(min_length=1)] | None = None
    tools: list[FunctionTool] | None = None
    add_generation_prompt: bool = True


class ExplainRequest(CachedPrompt):
    """Body of `POST /v1/cache/explain`."""

    tenant: str | None = Field(None, max_length=64, description="Whose request it is; the admin's to choose.")
    context_tokens: int = Field(8, ge=0, le=64, description="Tokens shown around a divergence.")


class PinRequest(CachedPrompt):
    """Body of `POST /v1/cache/pins`."""

    name: str = Field("", max_length=200)
    ttl_seconds: Annotated[Number, Field(gt=0, le=10 * 365 * 86400)] | None = Field(
        None, description="Until it is deleted, where left out."
    )
    add_generation_prompt: bool = False
