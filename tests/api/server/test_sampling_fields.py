"""Each field that changes which tokens are chosen, against transformers and against plain reasoning."""

from __future__ import annotations

import importlib.util
import json
import math
from typing import Any

import openai
import pytest
import torch

from tests.api.server.conftest import NAME, Plain, ServeProcess, Start, until

TEXT = "The quick brown fox"
MOST = 12


def complete(server: ServeProcess, **fields: Any) -> Any:
    known = {"temperature": 0, "max_tokens": MOST, "prompt": TEXT}
    extra = {
        name: fields.pop(name)
        for name in ("repetition_penalty", "top_k", "min_p", "min_tokens", "ignore_eos", "priority")
        if name in fields
    }
    return server.client().completions.create(model=NAME, extra_body=extra, **{**known, **fields})


def generated(plain: Plain, **options: Any) -> str:
    ids = torch.tensor([plain.tokenizer.encode(TEXT)])
    out = plain.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=MOST, do_sample=False, **options
    )
    return plain.text(out[0, ids.shape[1] :].tolist())


def test_a_repetition_penalty_is_hugging_faces(server: ServeProcess, plain: Plain) -> None:
    text = complete(server, repetition_penalty=3.0).choices[0].text
    assert text == generated(plain, repetition_penalty=3.0)
    assert text != generated(plain)


def test_a_logit_bias_forces_and_forbids(server: ServeProcess, plain: Plain) -> None:
    first = plain.continued(plain.tokenizer.encode(TEXT), 1)[0]
    other = next(token for token in range(20, 400) if token != first and plain.text([token]).isascii())
    forced = complete(server, logit_bias={str(other): 100}, ignore_eos=True).choices[0].text
    assert forced == plain.text([other]) * MOST
    forbidden = complete(server, logit_bias={str(first): -100}, max_tokens=1).choices[0].text
    assert forbidden != plain.text([first])


@pytest.mark.parametrize("field", ["presence_penalty", "frequency_penalty"])
def test_penalties_see_the_completion(server: ServeProcess, plain: Plain, field: str) -> None:
    # Greedy by the plain model's logits and OpenAI's formula.
    prompt = plain.tokenizer.encode(TEXT)
    tokens: list[int] = []
    for _ in range(MOST):
        logits = plain.model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].clone()
        for token in set(tokens):
            logits[token] -= 2.0 * (tokens.count(token) if field == "frequency_penalty" else 1)
        tokens.append(int(logits.argmax()))
    found = complete(server, **{field: 2.0}, ignore_eos=True).choices[0].text
    assert found == plain.text(tokens)


def test_top_k_of_one_and_the_least_top_p_are_greedy(server: ServeProcess, plain: Plain) -> None:
    for fields in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        assert complete(server, temperature=1, **fields).choices[0].text == generated(plain)


def test_min_tokens_keeps_an_end_away(server: ServeProcess, plain: Plain) -> None:
    eos = str(plain.tokenizer.eos_token_id)
    ended = complete(server, logit_bias={eos: 100})
    assert (ended.choices[0].text, ended.choices[0].finish_reason) == ("", "stop")
    assert ended.usage.completion_tokens == 1
    kept = complete(server, logit_bias={eos: 100}, min_tokens=5)
    assert (kept.usage.completion_tokens, kept.choices[0].finish_reason) == (6, "stop")
    assert complete(server, logit_bias={eos: 100}, ignore_eos=True).usage.completion_tokens == MOST


def test_a_seed_repeats_and_the_first_of_n_is_the_request_alone(server: ServeProcess) -> None:
    alone = complete(server, temperature=1.3, seed=11).choices[0].text
    many = complete(server, temperature=1.3, seed=11, n=4).choices
    assert many[0].text == alone
    assert len({choice.text for choice in many}) == 4


class TestLogprobs:
    def test_of_chats_are_the_models(self, server: ServeProcess, plain: Plain) -> None:
        messages = [{"role": "user", "content": "How likely?"}]
        prompt = plain.prompt(messages)
        tokens = plain.continued(prompt, 5)
        with torch.no_grad():
            logits = plain.model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        wanted = torch.log_softmax(logits, -1)
        arguments: Any = {
            "model": NAME, "messages": messages, "max_tokens": 5, "temperature": 0, "logprobs": True,
            "top_logprobs": 3, "extra_body": {"ignore_eos": True},
        }  # fmt: skip
        whole = server.client().chat.completions.create(**arguments).choices[0].logprobs.content
        streamed = []
        for chunk in server.client().chat.completions.create(**arguments, stream=True):
            if chunk.choices[0].logprobs is not None:
                streamed += chunk.choices[0].logprobs.content
        assert [one.token for one in streamed] == [one.token for one in whole]
        for one, other in zip(streamed, whole):
            # The second time the prompt was cached, so another step computed it.
            assert math.isclose(one.logprob, other.logprob, abs_tol=1e-4)
        assert len(whole) == 5
        for place, (token, found) in enumerate(zip(tokens, whole)):
            assert found.token == plain.tokenizer.decode([token])
            assert math.isclose(found.logprob, wanted[place, token], abs_tol=1e-3)
            top = wanted[place].topk(3)
            assert [one.token for one in found.top_logprobs] == [
                plain.tokenizer.decode([other]) for other in top.indices.tolist()
            ]
            assert all(
                math.isclose(one.logprob, value, abs_tol=1e-3)
                for one, value in zip(found.top_logprobs, top.values.tolist())
            )

    def test_of_completions_are_parallel_lists(self, server: ServeProcess) -> None:
        choice = complete(server, logprobs=2, echo=True, ignore_eos=True).choices[0]
        found = choice.logprobs
        assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == MOST
        assert found.text_offset[0] == len(TEXT)
        # Greedy: each is the likeliest.
        for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs):
            assert max(top.values()) == top[token] == logprob and len(top) <= 3

    def test_top_logprobs_without_logprobs_are_refused(self, server: ServeProcess) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            server.client().chat.completions.create(
                model=NAME, messages=[{"role": "user", "content": "a"}], top_logprobs=2
            )
        assert caught.value.param == "top_logprobs"


@pytest.mark.skipif(importlib.util.find_spec("llguidance") is None, reason="needs llguidance")
class TestResponseFormat:
    def test_an_answer_is_what_the_schema_says(self, server: ServeProcess) -> None:
        schema = {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        }
        form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
        arguments: Any = {
            "model": NAME, "messages": [{"role": "user", "content": "JSON!"}], "max_tokens": 400,
            "seed": 5, "response_format": form,
        }  # fmt: skip
        [choice] = server.client().chat.completions.create(**arguments).choices
        assert choice.finish_reason == "stop"
        answer = json.loads(choice.message.content or "")
        assert set(answer) == {"a", "b"} and answer["a"] in (1, 2) and isinstance(answer["b"], bool)
        chunks = server.client().chat.completions.create(**arguments, stream=True)
        assert "".join(one.choices[0].delta.content or "" for one in chunks) == choice.message.content

    @pytest.mark.parametrize(
        "form",
        [
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": {"name": "x"}},
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}},
        ],
    )
    def test_a_schema_that_is_none_is_400(self, server: ServeProcess, form: Any) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            server.client().chat.completions.create(
                model=NAME, messages=[{"role": "user", "content": "a"}], response_format=form
            )
        assert caught.value.param == "response_format"


def test_a_full_queue_is_429_and_says_when_to_come_back(start_server: Start) -> None:
    server = start_server("--max-waiting", "1", "--max-running", "1")
    with server.client() as client:
        arguments: Any = {
            "model": NAME, "prompt": "a", "max_tokens": 1900, "extra_body": {"ignore_eos": True}, "stream": True,
        }  # fmt: skip
        running = client.completions.create(**arguments)
        next(running)
        with pytest.raises(openai.RateLimitError) as caught:
            # One of these may wait; the other is one too many.
            client.completions.create(**{**arguments, "n": 2})
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        running.close()
        until(lambda: server.metric("kvtrie_num_requests_running") == 0)
        until(lambda: server.metric("kvtrie_num_requests_waiting") == 0)
        reply = client.completions.create(model=NAME, prompt="a", max_tokens=1)
        assert reply.choices


def test_the_models_own_sampling_is_the_default_where_it_samples(
    start_server: Start, plain: Plain, tmp_path: Any
) -> None:
    plain.model.save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({**config, "do_sample": True, "top_k": 1}))
    server = start_server("--served-name", NAME, model=tmp_path)
    # Temperature 1 and top_k 1: the likeliest token.
    reply = server.client().completions.create(model=NAME, prompt=TEXT, max_tokens=MOST)
    assert reply.choices[0].text == generated(plain)
