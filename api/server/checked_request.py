"""A request's body made into what the engine is asked: done in a thread, since its time grows with the body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kvtrie.api.engine.sampling.constraint import JsonSchema
from kvtrie.api.engine.sampling.parameters import Sampling
from kvtrie.api.engine.sampling.uniforms import derived_seed
from kvtrie.api.server.answered_chats import AnsweredChats, ChatDigest
from kvtrie.api.server.api_error import TOO_LONG, ApiError, validation_error
from kvtrie.api.server.prompts import PromptText
from kvtrie.api.server.requests import (
    MOST_CHOICES,
    ChatRequest,
    CompletionRequest,
    ResponseFormat,
    SamplingFields,
)
from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.keys import TokenArray, as_tokens

B = TypeVar("B", bound=BaseModel)

_OF_MODELS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Fields of generation configs that `Sampling` has by the same name."""
_SAMPLING = (
    *_OF_MODELS,
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
)
"""Fields of requests that `Sampling` has by the same name."""


@dataclass(frozen=True, slots=True)
class AnsweredAs:
    """How the answers of a chat are remembered."""

    text: str
    """The prompt's."""
    digest: ChatDigest
    """Of its messages."""


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A checked request for one or more choices."""

    model: str
    """The name it was asked for by."""
    prompts: list[TokenArray]
    echoes: list[str]
    """For each prompt, the text that its choices begin with."""
    n: int
    """Choices of each prompt."""
    max_new_tokens: list[int]
    """For each prompt."""
    samplings: list[Sampling]
    """For each of a prompt's choices."""
    stops: list[str]
    cache_salt: str
    priority: int
    is_stream: bool
    includes_usage: bool
    chat: AnsweredAs | None = None
    """How to remember the answers; None where they are not to be continued."""


@dataclass(frozen=True, slots=True)
class Served:
    """What requests are checked against."""

    names: tuple[str, ...]
    """The model's; the first one is the default."""
    longest: int
    """Most tokens of a prompt and its completion."""
    vocabulary: int
    generation_config: Any
    """The model's own, whose sampling is the default where it samples at all."""
    text: PromptText
    chats: AnsweredChats


def parse(form: type[B], body: bytes) -> B:
    """A body as `form`.

    Raises:
        ApiError: it is not JSON, or not of that form.
    """
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        raise validation_error(error) from None


def model_named(served: Served, name: str | None) -> str:
    """The name under which a request asks for the model.

    Raises:
        ApiError: 404 for a model that is not served.
    """
    if name is None or name in served.names:
        return name or served.names[0]
    shown = ascii(name[:100])
    raise ApiError(
        404,
        f"the model {shown} is not served; served: {', '.join(served.names)}",
        param="model",
        code="model_not_found",
    )


def check_chat(served: Served, raw: bytes, tenant: str) -> CheckedRequest:
    """The checked request of a chat's body that a tenant sent.

    Raises:
        ApiError: names what cannot be served.
    """
    body = parse(ChatRequest, raw)
    name = model_named(served, body.model)
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise ApiError(
            400,
            "max_tokens and max_completion_tokens differ; send one of them",
            param="max_completion_tokens",
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs need logprobs true", param="top_logprobs")
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    tools = None if body.tool_choice == "none" else body.tools
    besides = [[tool.model_dump() for tool in tools or ()], variables]
    digest = ChatDigest(tenant, body.cache_salt or "", besides)
    prompt = served.text.chat(
        served.chats,
        digest,
        body.messages,
        tools,
        opens_reply=body.add_generation_prompt,
        continues_last=body.continue_final_message,
        variables=variables,
    )
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    further: dict[str, Any] = {"constraint": _constraint(body.response_format)}
    if body.logprobs:
        further["logprobs"] = body.top_logprobs or 0
    checked = _checked(served, body, name, [prompt.tokens], [""], most, "messages", further)
    # An answer that continues a message, or begins where none is opened, is no message of its own.
    return replace(checked, chat=AnsweredAs(prompt.text, digest)) if body.add_generation_prompt else checked


def check_completion(served: Served, raw: bytes) -> CheckedRequest:
    """The checked request of a completion's body.

    Raises:
        ApiError: names what cannot be served.
    """
    body = parse(CompletionRequest, raw)
    name = model_named(served, body.model)
    if body.best_of not in (None, body.n or 1):
        raise ApiError(400, f"best_of must be n, got {body.best_of}", param="best_of")
    given: Any = body.prompt
    if isinstance(given, str) or isinstance(given[0], int):
        given = [given]
    prompts = [served.text.text(one) if isinstance(one, str) else one for one in given]
    echoes = [""] * len(prompts)
    if body.echo:
        echoes = [one if isinstance(one, str) else served.text.decode(one) for one in given]
    return _checked(
        served, body, name, prompts, echoes, body.max_tokens, "prompt", {"logprobs": body.logprobs}
    )


def check_tokens(served: Served, tokens: Sequence[int], param: str) -> None:
    """Checks a prompt's token ids.

    Raises:
        ApiError: there are none, or one is outside the model's vocabulary.
    """
    if not tokens:
        raise ApiError(400, "the prompt is empty: a model needs at least one token", param=param)
    if (highest := max(tokens)) >= served.vocabulary:
        raise ApiError(
            400, f"token id {highest} is outside the vocabulary of {served.vocabulary}", param=param
        )


def _checked(
    served: Served,
    body: SamplingFields,
    name: str,
    prompts: list[list[int]],
    echoes: list[str],
    most: int | None,
    param: str,
    further: dict[str, Any],
) -> CheckedRequest:
    n = body.n or 1
    if n * len(prompts) > MOST_CHOICES:
        raise ApiError(
            400, f"{len(prompts)} prompts with n={n} are more than {MOST_CHOICES} choices", param="n"
        )
    room = []
    for tokens in prompts:
        check_tokens(served, tokens, param)
        left = served.longest - len(tokens)
        wanted = max(1, left) if most is None else most
        if wanted > left:
            raise ApiError(
                400,
                f"this model's context is {served.longest} tokens: {len(tokens)} of the prompt and {wanted} to be "
                "completed do not fit; shorten the prompt, or ask for fewer",
                param=param,
                code=TOO_LONG,
            )
        room.append(wanted)
    stop = body.stop
    if stop and served.text.optional_tokenizer is None:
        raise ApiError(400, "stop strings need a tokenizer, and this model has none", param="stop")
    options = body.stream_options
    if options is not None and not body.stream:
        raise ApiError(400, "stream_options need stream true", param="stream_options")
    return CheckedRequest(
        model=name,
        prompts=[as_tokens(tokens) for tokens in prompts],
        echoes=echoes,
        n=n,
        max_new_tokens=room,
        samplings=_samplings(served, body, further, n),
        stops=[stop] if isinstance(stop, str) else list(stop or ()),
        cache_salt=body.cache_salt or "",
        priority=body.priority or 0,
        is_stream=bool(body.stream),
        includes_usage=options is not None and options.include_usage,
    )


def _samplings(served: Served, body: SamplingFields, further: dict[str, Any], n: int) -> list[Sampling]:
    """Each choice's sampling: by the request, else by the model's own config, else OpenAI's default."""
    wanted: dict[str, Any] = {"temperature": 1.0}
    config = served.generation_config
    if getattr(config, "do_sample", False):
        own = {name: getattr(config, name, None) for name in _OF_MODELS}
        wanted |= {name: value for name, value in own.items() if value is not None}
    for name in _SAMPLING:
        if (value := getattr(body, name)) is not None:
            wanted[name] = value
    wanted["top_k"] = max(0, wanted.get("top_k", 0))
    if body.logit_bias:
        wanted["logit_bias"] = {int(token): bias for token, bias in body.logit_bias.items()}
    try:
        first = Sampling(**wanted, **further)
        first.check_vocabulary(served.vocabulary)
    except InputError as error:
        raise ApiError(400, str(error)) from None
    if first.seed is None:
        return [first] * n
    # The first choice is the request's alone; the others differ, and are repeatable too.
    return [replace(first, seed=derived_seed(first.seed, choice)) for choice in range(n)]


def _constraint(form: ResponseFormat | None) -> JsonSchema | None:
    """What the answer must be.

    Raises:
        ApiError: the schema cannot be enforced, or the library that does it is not installed.
    """
    if form is None or form.type == "text":
        return None
    schema: dict[str, Any] | None = {"type": "object"}
    if form.type == "json_schema":
        schema = None if form.json_schema is None else form.json_schema.schema_
    if schema is None:
        raise ApiError(400, "response_format needs a json_schema with a schema", param="response_format")
    try:
        return JsonSchema(schema)
    except (InputError, ImportError) as error:
        raise ApiError(400, str(error), param="response_format") from None
