"""Each refusal: its status, and OpenAI's shape with the field that is at fault."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.api.server.conftest import NAME, POSITIONS, ServeProcess, connected

USER = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"


def refused(reply: Any) -> tuple[int, str | None, str | None]:
    """Status, param and code of a reply that is of OpenAI's shape."""
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str)
    return reply.status_code, error["param"], error["code"]


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "7"}, "max_tokens"),
        ({"max_tokens": 7.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 7, "max_completion_tokens": 8}, "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"stop": [""]}, None),
        ({"stop": ["x"] * 17}, None),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"seed": 1 << 64}, "seed"),
        ({"temprature": 1}, "temprature"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"max_tokens": POSITIONS}, "messages"),
    ],
)
def test_a_field_that_cannot_work_is_named(
    server: ServeProcess, changed: dict[str, Any], param: str | None
) -> None:
    with server.http() as http:
        reply = http.post(CHAT, json={"model": NAME, "messages": USER, **changed})
    status, named, _ = refused(reply)
    assert status == 400
    assert named == param if param is not None else named is None or named.startswith(tuple(changed))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b'{"model": "\\ud800"}', b"[" * 100_000, b'{"seed": NaN}']
)
@pytest.mark.parametrize("route", [CHAT, "/v1/completions", "/tokenize", "/detokenize", "/v1/cache/explain"])
def test_a_malformed_body_is_400(server: ServeProcess, route: str, body: bytes) -> None:
    with server.http() as http:
        assert refused(http.post(route, content=body))[0] == 400


@pytest.mark.parametrize(
    "prompt", [[], [[]], ["a", 3], [1, "a"], [-1], [1 << 31], [420_000], [[1], "a"], None, 3, {"a": 1}]
)
def test_a_prompt_that_is_none_is_400(server: ServeProcess, prompt: Any) -> None:
    with server.http() as http:
        status, param, _ = refused(http.post("/v1/completions", json={"prompt": prompt}))
    assert status == 400
    assert param is not None and param.startswith("prompt")


def test_a_prompt_that_is_too_long(server: ServeProcess) -> None:
    client = server.client()
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt=[5] * (POSITIONS + 1), max_tokens=1)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"
    # All positions but one may be the prompt's.
    reply = client.completions.create(model=NAME, prompt=[5] * (POSITIONS - 1), max_tokens=1)
    assert reply.usage.prompt_tokens == POSITIONS - 1
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=NAME, prompt=[5] * (POSITIONS - 1), max_tokens=2)


def test_an_unknown_model_is_404(server: ServeProcess) -> None:
    client = server.client()
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=USER)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_routes_and_methods_that_there_are_not(server: ServeProcess) -> None:
    with server.http() as http:
        assert refused(http.get("/v1/embeddings"))[0] == 404
        assert refused(http.get(CHAT))[0] == 405
        assert refused(http.post("/v1/models/"))[0] == 405
        assert refused(http.delete("/v1/cache/pins/none"))[0] == 404


def test_a_web_page_is_refused(server: ServeProcess) -> None:
    with server.http() as http:
        assert refused(http.get("/v1/models", headers={"Origin": "http://a.example"}))[0] == 403
        assert refused(http.get("/v1/models", headers={"Host": "a.example"}))[0] == 403


def test_a_body_over_the_limit_is_413(start_server: Any) -> None:
    server = start_server("--max-body", "1KiB")
    with server.http() as http:
        assert refused(http.post(CHAT, content=b"x" * 1025))[0] == 413

        def pieces() -> Any:
            yield from [b"x" * 512] * 3

        # Without an announced length it is cut off as it arrives.
        assert refused(http.post(CHAT, content=pieces()))[0] == 413
        assert http.get("/readyz").status_code == 200
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n"
    with connected(server, head.encode()) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")


def test_every_reply_has_a_request_id(server: ServeProcess) -> None:
    client = server.client()
    reply = client.chat.completions.create(model=NAME, messages=USER, max_tokens=1)
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert reply._request_id and caught.value.request_id
    assert reply._request_id != caught.value.request_id
