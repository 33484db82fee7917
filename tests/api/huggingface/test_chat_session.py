"""A conversation's prompts: token for token those of the turns before, as far as the chat template allows."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from kvtrie import PrefixCachedModel
from kvtrie.api.huggingface.chat_prompt import first_prompt, next_prompt
from kvtrie.api.huggingface.chat_session import ChatSession
from kvtrie.prefix_tree.errors import InputError
from tests.api.chat_model import SYSTEM, ChatModel
from tests.api.tokenizers_of_each_kind import CHAT, KINDS, byte_level

TOKENIZERS = {name: make for name, make in KINDS.items() if name != "tekken"}
QUESTION, ANSWER, NEXT = "Does the fox jump?", " the quick fox", "Why not?"


def messages(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if turn % 2 else "user", "content": content}
        for turn, content in enumerate(contents)
    ]


def rendered(tokenizer: PreTrainedTokenizerFast, *contents: str) -> list[int]:
    return list(
        tokenizer.apply_chat_template(messages(*contents), add_generation_prompt=True, return_dict=False)
    )


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_first_prompt_is_what_the_template_renders(make) -> None:
    tokenizer = make()
    assert first_prompt(tokenizer, messages(QUESTION)).tokens == rendered(tokenizer, QUESTION)


def test_an_answer_keeps_the_tokens_that_the_model_chose() -> None:
    """One token for each byte is an answer that the tokenizer itself would never write."""
    tokenizer = byte_level()
    last = first_prompt(tokenizer, messages(QUESTION))
    answer = tokenizer.convert_tokens_to_ids([c.replace(" ", "\u0120") for c in ANSWER])
    assert tokenizer.decode(answer) == ANSWER
    assert answer != tokenizer.encode(ANSWER, add_special_tokens=False)
    user, assistant = tokenizer.convert_tokens_to_ids(["<user>", "<assistant>"])
    prompt = next_prompt(tokenizer, messages(QUESTION, ANSWER, NEXT), last, answer, ANSWER)
    question = tokenizer.encode(NEXT, add_special_tokens=False)
    assert prompt.tokens == [*last.tokens, *answer, user, *question, assistant]


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_the_text_is_always_that_of_the_template(make) -> None:
    """Whatever a tokenizer does at the beginning of a text, and whichever tokens an answer had."""
    tokenizer = make()
    last = first_prompt(tokenizer, messages(QUESTION))
    whole = tokenizer.encode(ANSWER, add_special_tokens=False)
    for answer in (whole, whole[:-1], whole[1:], []):
        text = tokenizer.decode(answer)
        prompt = next_prompt(tokenizer, messages(QUESTION, text, NEXT), last, answer, text)
        assert tokenizer.decode(prompt.tokens) == tokenizer.decode(rendered(tokenizer, QUESTION, text, NEXT))


def test_a_template_that_changes_earlier_answers_has_its_way() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHAT.replace("m.content", "(m.content if m.role == 'user' else '...')")
    last = first_prompt(tokenizer, messages(QUESTION))
    answer = tokenizer.encode(ANSWER, add_special_tokens=False)
    prompt = next_prompt(tokenizer, messages(QUESTION, ANSWER, NEXT), last, answer, ANSWER)
    assert prompt.tokens == rendered(tokenizer, QUESTION, "...", NEXT)


def test_an_answer_with_a_token_that_has_no_text_is_rendered_anew() -> None:
    """`<pad>` has no place in the text of a message, so the prompt is what the template makes of the text."""
    tokenizer = byte_level()
    last = first_prompt(tokenizer, messages(QUESTION))
    answer = [*tokenizer.encode(ANSWER, add_special_tokens=False), tokenizer.pad_token_id]
    prompt = next_prompt(tokenizer, messages(QUESTION, ANSWER, NEXT), last, answer, ANSWER)
    assert prompt.tokens == rendered(tokenizer, QUESTION, ANSWER, NEXT)


def test_a_template_that_raises_is_an_input_error() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ raise_exception('no system role here') }}"
    with pytest.raises(InputError, match="no system role here"):
        first_prompt(tokenizer, messages(QUESTION))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    return ChatModel(tmp_path_factory.mktemp("model"))


def test_the_token_that_ends_an_answer_is_no_part_of_it(tiny: ChatModel) -> None:
    prompt = tiny.first_prompt(QUESTION)
    plain = tiny.greedy(prompt, 40)
    # An end at a token that comes late, and not before.
    end = next(i for i in range(10, 40) if plain[i] not in plain[:i])
    tiny.model.generation_config.eos_token_id = plain[end]
    try:
        with PrefixCachedModel(tiny.model, tiny.tokenizer, memory="8MiB") as cached:
            session = ChatSession(cached, SYSTEM, max_new_tokens=40)
            assert "".join(session.answer(QUESTION)) == tiny.text(plain[:end])
            list(session.answer(NEXT))
            assert session.completion is not None
            asked = session.completion.request.tokens.tolist()
            assert asked == tiny.next_prompt(prompt, plain[:end], NEXT)
            assert session.completion.tokens == tiny.greedy(asked, 40)
            cached.check()
    finally:
        tiny.model.generation_config.eos_token_id = 2


def test_an_answer_left_early_is_kept_as_far_as_it_came(tiny: ChatModel) -> None:
    with PrefixCachedModel(tiny.model, tiny.tokenizer, memory="8MiB") as cached:
        session = ChatSession(cached, SYSTEM, max_new_tokens=200)
        answer = session.answer(QUESTION)
        while next(answer) == "":
            pass
        answer.close()
        assert session.completion is not None
        assert session.completion.finish_reason == "cancelled"
        assert cached.engine.idle
        said = session.completion.tokens
        assert 0 < len(said) < 200
        list(session.answer(NEXT))
        expected = tiny.next_prompt(tiny.first_prompt(QUESTION), said, NEXT)
        assert session.completion.request.tokens.tolist() == expected
        cached.check()


def test_a_message_that_was_refused_is_no_part_of_the_conversation(tiny: ChatModel) -> None:
    with PrefixCachedModel(tiny.model, tiny.tokenizer, memory="8MiB") as cached:
        session = ChatSession(cached, SYSTEM, max_new_tokens=4)
        with pytest.raises(InputError, match="positions"):
            list(session.answer("the dog " * 4000))
        list(session.answer(QUESTION))
        assert session.completion is not None
        assert session.completion.request.tokens.tolist() == tiny.first_prompt(QUESTION)


def test_a_tokenizer_without_a_template_cannot_chat(tiny: ChatModel, tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = None
    with (
        PrefixCachedModel(tiny.model, tokenizer, memory="8MiB") as cached,
        pytest.raises(InputError, match="chat template"),
    ):
        ChatSession(cached)
