"""Prompts of requests as token ids: rendered by the chat template, or tokenized as they are."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from kvtrie.api.engine.prompt import encode_text
from kvtrie.api.huggingface.chat_prompt import ChatPrompt
from kvtrie.api.server.answered_chats import AnsweredChats, ChatDigest
from kvtrie.api.server.api_error import ApiError
from kvtrie.api.server.requests import ChatMessage, FunctionTool


class PromptText:
    """Turns messages and text into tokens, and back. Thread-safe as far as the tokenizer is.

    Args:
        tokenizer: transformers' tokenizer; None where the model has none, and prompts must be token ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = getattr(tokenizer, "apply_chat_template", None)
        self._template_arguments = set() if template is None else set(inspect.signature(template).parameters)
        if tokenizer is not None:
            # A tokenizer's file may ask for truncation, which transformers takes away at the first call; two
            # threads must not do so at once.
            tokenizer.encode("")

    @property
    def optional_tokenizer(self) -> Any:
        """The tokenizer, or None."""
        return self._tokenizer

    @property
    def tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            ApiError: there is none.
        """
        if self._tokenizer is None:
            raise ApiError(400, "this model has no tokenizer: send the prompt as token ids")
        return self._tokenizer

    def text(self, text: str, *, special_tokens: bool | None = None) -> list[int]:
        """Tokens of a text; None adds special tokens unless the text begins with the BOS token."""
        try:
            if special_tokens is None:
                return encode_text(self.tokenizer, text)
            return list(self.tokenizer.encode(text, add_special_tokens=special_tokens))
        except ApiError:
            raise
        # Tokenizers raise what they please for text that they cannot encode.
        except Exception as error:
            raise ApiError(400, f"the tokenizer cannot encode this text: {_first_line(error)}") from error

    def messages(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[FunctionTool] | None = None,
        *,
        opens_reply: bool = True,
        continues_last: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> ChatPrompt:
        """Messages as the chat template renders them, and their tokens.

        Args:
            messages: in order.
            tools: passed to the template.
            opens_reply: whether the beginning of the model's reply is rendered after them.
            continues_last: whether the last message is left open, for the model to continue.
            variables: further variables of the template.

        Raises:
            ApiError: there is no template, it cannot render these, or a variable is not one of the template's.
        """
        tokenizer = self.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise ApiError(
                400, "this model's tokenizer has no chat template: use /v1/completions, or add a template"
            )
        reserved = sorted(self._template_arguments & set(variables or ()))
        if reserved:
            raise ApiError(
                400,
                f"chat_template_kwargs may not hold {reserved[0]!r}: it is no variable of the template",
                param="chat_template_kwargs",
            )
        if opens_reply and continues_last:
            raise ApiError(
                400,
                "continue_final_message needs add_generation_prompt false: the reply is the last message",
                param="continue_final_message",
            )
        try:
            text = tokenizer.apply_chat_template(
                [as_template_wants(message) for message in messages],
                tools=_plain(tools),
                add_generation_prompt=opens_reply,
                continue_final_message=continues_last,
                tokenize=False,
                **(variables or {}),
            )
            return ChatPrompt(text, self.rendered(text))
        # A template is a program of its own, and raises what it pleases.
        except Exception as error:
            raise ApiError(
                400,
                f"the chat template cannot render these messages: {_first_line(error)}",
                param="messages",
            ) from error

    def rendered(self, text: str) -> list[int]:
        """Tokens of rendered text, or of a part of it: a template writes all special tokens itself."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def chat(
        self,
        chats: AnsweredChats,
        digest: ChatDigest,
        messages: Sequence[ChatMessage],
        tools: Sequence[FunctionTool] | None,
        **how: Any,
    ) -> ChatPrompt:
        """As `messages`; where they continue an answered chat, its tokens are continued.

        Args:
            chats: that were answered.
            digest: of no message yet; all of them are added.
            messages: see `messages`, also for what follows.
        """
        prompt = self.messages(messages, tools, **how)
        answered = []
        for message in messages:
            so_far = digest.add(as_template_wants(message))
            if message.role == "assistant":
                answered.append(so_far)
        return chats.continued(
            answered, prompt, self.rendered, lambda tokens: str(self.tokenizer.decode(tokens))
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones included."""
        tokenizer = self.tokenizer
        # A fast tokenizer leaves out an id that it lacks, and an older one raises.
        unknown = [token for token in tokens if token >= len(tokenizer)]
        if unknown:
            raise ApiError(
                400, f"token id {unknown[0]} is not in the vocabulary of {len(tokenizer)}", param="tokens"
            )
        return str(tokenizer.decode(list(tokens)))

    def spoken(self, token: int) -> str:
        """Text of one token alone."""
        return str(self.tokenizer.decode([token]))

    def spelled(self, tokens: Sequence[int]) -> list[str]:
        """Each token as the vocabulary spells it."""
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(list(tokens))]


def _plain(tools: Sequence[FunctionTool] | None) -> list[dict[str, Any]] | None:
    return [tool.model_dump(exclude_none=True) for tool in tools] if tools else None


def as_template_wants(message: ChatMessage) -> dict[str, Any]:
    """A message as chat templates expect it: one text, and arguments of calls as objects."""
    shown = message.model_dump(exclude_none=True)
    if isinstance(message.content, list):
        shown["content"] = "\n".join(part.text for part in message.content)
    else:
        shown["content"] = message.content or ""
    for call in shown.get("tool_calls", ()):
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            function["arguments"] = _parsed(function["arguments"])
    return shown


def _parsed(arguments: str) -> Any:
    """Arguments as the JSON object that the text is; the text where it is none."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


def _first_line(error: Exception) -> str:
    said = (str(error).splitlines() or [""])[0]
    return ascii(said or type(error).__name__)[1:-1][:300]
