"""A request's body made into what the engine is asked: done in a thread, since its time grows with the body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kvtrie.api.engine.sampler import Sampling
from kvtrie.api.huggingface.chat_prompt import ChatPrompt
from kvtrie.api.huggingface.generate_arguments import eos_tokens
from kvtrie.api.server.answered_chats import AnsweredChats, ChatDigest
from kvtrie.api.server.api_error import TOO_LONG, ApiError, validation_error
from kvtrie.api.server.prompts import PromptText
from kvtrie.api.server.requests import MOST_CHOICES, ChatRequest, CompletionRequest, SamplingFields
from kvtrie.prefix_tree.errors import InputError

B = TypeVar("B", bound=BaseModel)

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
)
"""Fields of requests that `Sampling` has by the same name."""
_OFF = {"min_p": 0, "presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1}
"""Values that change nothing."""


@dataclass(frozen=True, slots=True)
class AnsweredAs:
    """A chat's prompt and the digest of its messages."""

    prompt: ChatPrompt
    digest: ChatDigest


@dataclass(frozen=True, slots=True)
class Job:
    """A checked request for one or more choices."""

    model: str
    """The name it was asked for by."""
    prompts: list[list[int]]
    echoes: list[str]
    """For each prompt, the text that its choices begin with."""
    n: int
    """Choices of each prompt."""
    max_new_tokens: list[int]
    """For each prompt."""
    eos: frozenset[int]
    samplings: list[Sampling]
    """For each of a prompt's choices."""
    stops: list[str]
    cache_salt: str
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


def chat_job(served: Served, raw: bytes, tenant: str) -> Job:
    """The job of a chat's body that a tenant sent.

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
    if body.logprobs or body.top_logprobs:
        raise ApiError(400, "logprobs are not served", param="logprobs")
    if body.response_format is not None and body.response_format.type != "text":
        raise ApiError(
            400,
            f"response_format {body.response_format.type} is not served: no grammar constrains the answer",
            param="response_format",
        )
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
    job = _job(served, body, name, [prompt.tokens], [""], most, "messages")
    # An answer that continues a message, or begins where none is opened, is no message of its own.
    return replace(job, chat=AnsweredAs(prompt, digest)) if body.add_generation_prompt else job


def completion_job(served: Served, raw: bytes) -> Job:
    """The job of a completion's body.

    Raises:
        ApiError: names what cannot be served.
    """
    body = parse(CompletionRequest, raw)
    name = model_named(served, body.model)
    if body.best_of not in (None, body.n or 1):
        raise ApiError(400, f"best_of must be n, got {body.best_of}", param="best_of")
    if body.logprobs is not None:
        raise ApiError(400, "logprobs are not served", param="logprobs")
    given: Any = body.prompt
    if isinstance(given, str) or isinstance(given[0], int):
        given = [given]
    prompts = [served.text.text(one) if isinstance(one, str) else one for one in given]
    echoes = [""] * len(prompts)
    if body.echo:
        echoes = [one if isinstance(one, str) else served.text.decode(one) for one in given]
    return _job(served, body, name, prompts, echoes, body.max_tokens, "prompt")


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


def _job(
    served: Served,
    body: SamplingFields,
    name: str,
    prompts: list[list[int]],
    echoes: list[str],
    most: int | None,
    param: str,
) -> Job:
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
    options = body.stream_options
    if options is not None and not body.stream:
        raise ApiError(400, "stream_options need stream true", param="stream_options")
    ends = frozenset() if body.ignore_eos else eos_tokens(served.generation_config)
    return Job(
        model=name,
        prompts=prompts,
        echoes=echoes,
        n=n,
        max_new_tokens=room,
        eos=ends | frozenset(body.stop_token_ids or ()),
        samplings=[_sampling(served, body, choice) for choice in range(n)],
        stops=[stop] if isinstance(stop, str) else list(stop or ()),
        cache_salt=body.cache_salt or "",
        is_stream=bool(body.stream),
        includes_usage=options is not None and options.include_usage,
    )


def _sampling(served: Served, body: SamplingFields, choice: int) -> Sampling:
    """How a choice's tokens are chosen: by the request, else by the model's own config, else OpenAI's default."""
    wanted: dict[str, Any] = {"temperature": 1.0}
    config = served.generation_config
    if getattr(config, "do_sample", False):
        own = {name: getattr(config, name, None) for name in _SAMPLING}
        wanted |= {name: value for name, value in own.items() if value is not None}
    for name in _SAMPLING:
        if (value := getattr(body, name)) is not None:
            wanted[name] = value
    wanted["top_k"] = max(0, wanted.get("top_k", 0))
    if "seed" in wanted:
        # Choices of one prompt differ, and each is repeatable.
        wanted["seed"] += choice
    if body.logit_bias:
        wanted["logit_bias"] = {int(token): bias for token, bias in body.logit_bias.items()}
    known = {one.name for one in fields(Sampling)}
    wanted = {name: value for name, value in wanted.items() if name in known or value != _OFF.get(name)}
    if unknown := sorted(set(wanted) - known):
        raise ApiError(400, f"{unknown[0]} is not served", param=unknown[0])
    try:
        return Sampling(**wanted)
    except InputError as error:
        raise ApiError(400, str(error)) from None
