"""The official client against a real process: answers are those of `model.generate`, streamed or not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.api.server.conftest import CHUNK_TOKENS, NAME, POSITIONS, Plain, ServeProcess

MESSAGES = [
    {"role": "system", "content": "You answer in one sentence, naïvely."},
    {"role": "user", "content": "日本語のテキスト or the quick brown fox?"},
]
MOST = 24


def expected(plain: Plain, prompt: list[int], most: int = MOST) -> tuple[str, str, int]:
    """Text, finish reason and number of tokens of the greedy answer."""
    tokens = plain.continued(prompt, most)
    is_ended = tokens[-1] == plain.tokenizer.eos_token_id
    return plain.text(tokens), "stop" if is_ended else "length", len(tokens)


def five_turns(plain: Plain, first: str) -> list[tuple[list[dict[str, Any]], list[int], list[int]]] | None:
    """Messages, prompt and answer of each turn of a chat, each prompt continuing the tokens of the turn before.

    None where an answer has a special token: its text does not say it, so the text is what the next turn continues.
    """
    messages: list[dict[str, Any]] = [{"role": "user", "content": first}]
    known: list[int] = []
    text = ""
    turns = []
    for number in range(5):
        rendered = plain.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert rendered.startswith(text)
        prompt = known + plain.tokenizer.encode(rendered[len(text) :], add_special_tokens=False)
        answer = plain.continued(prompt, MOST)
        if any(plain.text([token]) == "" for token in answer):
            return None
        turns.append((list(messages), prompt, answer))
        known, text = prompt + answer, rendered + plain.text(answer)
        messages += [
            {"role": "assistant", "content": plain.text(answer)},
            {"role": "user", "content": f"And turn {number + 2}?"},
        ]
    return turns


class TestChat:
    def test_it_is_what_generate_answers(self, server: ServeProcess, plain: Plain) -> None:
        prompt = plain.prompt(MESSAGES)
        text, reason, count = expected(plain, prompt)
        reply = server.client().chat.completions.create(
            model=NAME, messages=MESSAGES, max_completion_tokens=MOST, temperature=0
        )
        assert reply.object == "chat.completion" and reply.model == NAME
        [choice] = reply.choices
        assert (choice.message.role, choice.message.content, choice.finish_reason) == (
            "assistant",
            text,
            reason,
        )
        usage = reply.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), count)
        assert usage.total_tokens == len(prompt) + count

    def test_a_stream_says_the_same(self, server: ServeProcess, plain: Plain) -> None:
        prompt = plain.prompt(MESSAGES)
        text, reason, count = expected(plain, prompt)
        chunks = list(
            server.client().chat.completions.create(
                model=NAME,
                messages=MESSAGES,
                max_tokens=MOST,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk.id for chunk in chunks}) == 1
        *pieces, last = chunks
        assert pieces[0].choices[0].delta.role == "assistant"
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text
        reasons = [piece.choices[0].finish_reason for piece in pieces]
        assert reasons == [None] * (len(pieces) - 1) + [reason]
        assert [piece.usage for piece in pieces] == [None] * len(pieces)
        assert last.choices == []
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(prompt), count)

    def test_without_include_usage_a_stream_has_none(self, server: ServeProcess) -> None:
        chunks = list(
            server.client().chat.completions.create(
                model=NAME, messages=MESSAGES, max_tokens=3, temperature=0, stream=True
            )
        )
        assert all(chunk.choices and chunk.usage is None for chunk in chunks)

    def test_many_at_once_are_each_their_own(self, server: ServeProcess, plain: Plain) -> None:
        asked = [[{"role": "user", "content": f"question {i}: " + "x" * (7 * i)}] for i in range(12)]

        async def all_of_them() -> list[str]:
            async with server.async_client() as client:

                async def one(number: int) -> str:
                    arguments: Any = {
                        "model": NAME,
                        "messages": asked[number],
                        "max_tokens": MOST,
                        "temperature": 0,
                    }
                    if number % 2:
                        reply = await client.chat.completions.create(**arguments)
                        return reply.choices[0].message.content or ""
                    pieces = []
                    async for chunk in await client.chat.completions.create(**arguments, stream=True):
                        pieces.append(chunk.choices[0].delta.content or "")
                    return "".join(pieces)

                return list(await asyncio.gather(*(one(number) for number in range(len(asked)))))

        assert asyncio.run(all_of_them()) == [expected(plain, plain.prompt(one))[0] for one in asked]

    def test_text_parts_null_and_tool_messages_are_rendered(self, server: ServeProcess, plain: Plain) -> None:
        messages = [
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "a", "content": "three"},
        ]
        rendered = plain.prompt(
            [
                {"role": "user", "content": "one\ntwo"},
                {"role": "assistant", "content": ""},
                {"role": "tool", "content": "three"},
            ]
        )
        reply = server.client().chat.completions.create(
            model=NAME, messages=messages, max_tokens=5, temperature=0
        )
        assert reply.usage.prompt_tokens == len(rendered)
        assert reply.choices[0].message.content == expected(plain, rendered, 5)[0]

    def test_each_turn_finds_what_the_turn_before_left(self, server: ServeProcess, plain: Plain) -> None:
        turns = next(
            found for i in range(200) if (found := five_turns(plain, f"Five turns, please: {i}.")) is not None
        )
        before = 0
        for number, (messages, prompt, answer) in enumerate(turns):
            reply = server.client().chat.completions.create(
                model=NAME, messages=messages, max_tokens=MOST, temperature=0
            )
            assert reply.usage.prompt_tokens == len(prompt)
            assert reply.choices[0].message.content == plain.text(answer)
            # All whole chunks of the turn before: of its own tokens the last one has no KV.
            left = max(0, before - 1) // CHUNK_TOKENS * CHUNK_TOKENS
            assert number == 0 or left > 0
            assert reply.usage.prompt_tokens_details.cached_tokens >= left
            before = len(prompt) + len(answer)

    def test_tokens_of_another_tenants_chat_are_not_continued(
        self, tenant_server: ServeProcess, plain: Plain
    ) -> None:
        messages: list[dict[str, Any]] = [{"role": "user", "content": "Whose tokens are these?"}]
        arguments: Any = {"model": NAME, "max_tokens": MOST, "temperature": 0}
        reply = tenant_server.client("acme-key").chat.completions.create(messages=messages, **arguments)
        messages += [
            {"role": "assistant", "content": reply.choices[0].message.content},
            {"role": "user", "content": "Go on."},
        ]
        counts = {
            key: tenant_server.client(key).chat.completions.create(messages=messages, **arguments).usage
            for key in ("acme-key", "bolt-key")
        }
        prompt = plain.prompt(messages)
        assert counts["bolt-key"].prompt_tokens == len(prompt)
        # What a random model says is not what the tokenizer makes of its text.
        assert counts["acme-key"].prompt_tokens < len(prompt)


class TestChoices:
    def test_n_choices_of_a_seed_are_repeatable_and_differ(self, server: ServeProcess) -> None:
        def texts() -> list[str]:
            reply = server.client().chat.completions.create(
                model=NAME, messages=MESSAGES, max_tokens=MOST, temperature=1.5, seed=7, n=3
            )
            assert [choice.index for choice in reply.choices] == [0, 1, 2]
            return [choice.message.content or "" for choice in reply.choices]

        first = texts()
        assert texts() == first and len(set(first)) == 3

    def test_streamed_choices_are_told_apart(self, server: ServeProcess) -> None:
        arguments: Any = {"model": NAME, "messages": MESSAGES, "max_tokens": 9, "seed": 3, "n": 2}
        whole = server.client().chat.completions.create(**arguments)
        said = ["", ""]
        for chunk in server.client().chat.completions.create(**arguments, stream=True):
            for choice in chunk.choices:
                said[choice.index] += choice.delta.content or ""
        assert said == [choice.message.content for choice in whole.choices]

    def test_usage_counts_the_prompt_once_and_every_choice(self, server: ServeProcess, plain: Plain) -> None:
        reply = server.client().chat.completions.create(
            model=NAME, messages=MESSAGES, max_tokens=6, temperature=0, n=2
        )
        prompt = plain.prompt(MESSAGES)
        assert reply.usage.prompt_tokens == len(prompt)
        assert reply.usage.completion_tokens == 2 * expected(plain, prompt, 6)[2]


class TestStop:
    @pytest.mark.parametrize("is_streamed", [False, True])
    def test_the_text_ends_before_the_first_stop_string(
        self, server: ServeProcess, plain: Plain, is_streamed: bool
    ) -> None:
        prompt = plain.prompt(MESSAGES)
        text = expected(plain, prompt)[0]
        stop = text[8:11]
        arguments: Any = {
            "model": NAME,
            "messages": MESSAGES,
            "max_tokens": MOST,
            "temperature": 0,
            "stop": ["never said", stop],
        }
        client = server.client()
        if is_streamed:
            chunks = list(client.chat.completions.create(**arguments, stream=True))
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            [choice] = client.chat.completions.create(**arguments).choices
            said, reason = choice.message.content, choice.finish_reason
        assert (said, reason) == (text[: text.index(stop)], "stop")

    def test_stop_token_ids_end_it_and_have_no_text(self, server: ServeProcess, plain: Plain) -> None:
        prompt = plain.prompt(MESSAGES)
        tokens = plain.continued(prompt, MOST)
        place = next(i for i in range(5, MOST) if tokens[i] not in tokens[:i])
        reply = server.client().chat.completions.create(
            model=NAME,
            messages=MESSAGES,
            max_tokens=MOST,
            temperature=0,
            extra_body={"stop_token_ids": [tokens[place]]},
        )
        assert reply.choices[0].finish_reason == "stop"
        assert reply.choices[0].message.content == plain.text(tokens[:place])
        assert reply.usage.completion_tokens == place + 1


class TestCompletions:
    def test_text_tokens_and_several_prompts(self, server: ServeProcess, plain: Plain) -> None:
        texts = ["def f(x):", "emoji 😀"]
        ids = [plain.tokenizer.encode(text) for text in texts]
        wanted = [expected(plain, one)[0] for one in ids]
        client = server.client()
        for prompt in (texts, ids):
            reply = client.completions.create(model=NAME, prompt=prompt, max_tokens=MOST, temperature=0)
            assert [choice.text for choice in reply.choices] == wanted
            assert reply.usage.prompt_tokens == sum(map(len, ids))
        for one, text in ((texts[0], wanted[0]), (ids[1], wanted[1])):
            reply = client.completions.create(model=NAME, prompt=one, max_tokens=MOST, temperature=0)
            assert reply.choices[0].text == text

    def test_echo_begins_with_the_prompt(self, server: ServeProcess, plain: Plain) -> None:
        text = "def f(x):"
        wanted = text + expected(plain, plain.tokenizer.encode(text), 5)[0]
        arguments: Any = {"model": NAME, "prompt": text, "max_tokens": 5, "temperature": 0, "echo": True}
        assert server.client().completions.create(**arguments).choices[0].text == wanted
        chunks = list(server.client().completions.create(**arguments, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == wanted

    def test_sixteen_tokens_where_none_are_asked_for(self, server: ServeProcess) -> None:
        reply = server.client().completions.create(
            model=NAME, prompt="a", temperature=0, extra_body={"ignore_eos": True}
        )
        assert reply.usage.completion_tokens == 16


class TestOtherRoutes:
    def test_models(self, server: ServeProcess) -> None:
        client = server.client()
        [card] = client.models.list().data
        assert (card.id, card.object) == (NAME, "model")
        assert card.max_model_len == POSITIONS
        assert client.models.retrieve(NAME) == card

    def test_tokenize_and_back(self, server: ServeProcess, plain: Plain) -> None:
        text = "naïve 日本 😀"
        with server.http() as http:
            found = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
            assert found["tokens"] == plain.tokenizer.encode(text)
            assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
            bare = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
            assert bare["tokens"] == found["tokens"][1:]
            back = http.post("/detokenize", json={"tokens": bare["tokens"]}).json()
            assert back == {"prompt": text}
            chat = http.post("/tokenize", json={"messages": MESSAGES}).json()
            assert chat["tokens"] == plain.prompt(MESSAGES)

    def test_over_a_unix_socket(self, server: ServeProcess) -> None:
        import httpx

        transport = httpx.HTTPTransport(uds=str(server.socket_path))
        with httpx.Client(transport=transport, base_url="http://localhost") as http:
            assert http.get("/readyz").json() == {"ready": True, "engine": "ok"}
