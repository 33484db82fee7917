"""The prompt of a chat's next turn, which continues the tokens of the turn before.

A chat template renders all messages anew for each turn. An answer that is decoded and tokenized again may have other
tokens than those the model chose. The tree holds the chosen ones, so later prompts would not match it. Where the
rendered text continues the text of the last turn, its tokens therefore continue that turn's tokens:

    last turn     <system> ... <user> question <assistant>  answer
                  └──────────── its prompt ──────────────┘  └─ as computed ─┘
    next turn     the same tokens                                            <user> next question <assistant>

A template may also change earlier text, e.g. remove an answer's reasoning. Then the prompt is what it rendered, and
the tree's match ends where the two differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvtrie.prefix_tree.errors import InputError


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages as a chat template renders them, up to where the model's reply begins."""

    text: str
    tokens: list[int]


def first_prompt(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> ChatPrompt:
    """The prompt of messages that continue nothing.

    Raises:
        InputError: the tokenizer's chat template cannot render them.
    """
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    # A template is a program of its own, and raises what it pleases.
    except Exception as error:
        raise InputError(f"the tokenizer's chat template cannot render these messages: {error}") from error
    return ChatPrompt(text, _encode(tokenizer, text))


def next_prompt(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    last: ChatPrompt,
    answer_tokens: Sequence[int],
    answer_text: str,
) -> ChatPrompt:
    """The prompt of messages whose beginning was `last`, followed by an answer.

    Args:
        tokenizer: transformers' tokenizer, with a chat template.
        messages: all of the chat, the answer among them.
        last: the prompt that was answered.
        answer_tokens: tokens of the answer, without the one that ended it.
        answer_text: text of these tokens.

    Raises:
        InputError: the tokenizer's chat template cannot render the messages.
    """
    rendered = first_prompt(tokenizer, messages)
    known = [*last.tokens, *answer_tokens]
    if rendered.tokens[: len(known)] == known:
        return rendered
    known_text = last.text + answer_text
    if not rendered.text.startswith(known_text):
        return rendered
    joined = known + _encode(tokenizer, rendered.text[len(known_text) :])
    # A tokenizer may treat the beginning of a text in its own way, and an answer may have tokens without text.
    same_text = tokenizer.decode(joined) == tokenizer.decode(rendered.tokens)
    return ChatPrompt(rendered.text, joined) if same_text else rendered


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Tokens of rendered text, which has all special tokens already."""
    return list(tokenizer.encode(text, add_special_tokens=False))
