"""API keys, and what each of them may see: over the wire, against a real process."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from kvtrie.prefix_tree import Snapshot
from tests.api.server.conftest import CHUNK_TOKENS, NAME, Plain, ServeProcess

TEXT = "A tenant's own words, long enough for several chunks of eight tokens. "


def cached(server: ServeProcess, key: str, text: str, **more: Any) -> int:
    """Cached tokens that a completion of this prompt says it found."""
    reply = server.client(key).completions.create(
        model=NAME, prompt=text, max_tokens=1, temperature=0, extra_body=more
    )
    return int(reply.usage.prompt_tokens_details.cached_tokens)


def found_again(tokens: int) -> int:
    """Cached tokens of a prompt that was computed before: whole chunks, and not the last token."""
    return min(tokens // CHUNK_TOKENS * CHUNK_TOKENS, tokens - 1)


def test_a_wrong_key_and_no_key_are_401(tenant_server: ServeProcess) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        tenant_server.client("guess").models.list()
    assert caught.value.code == "invalid_api_key"
    with tenant_server.http() as http:
        for route in ("/v1/models", "/v1/cache/tree", "/metrics", "/v1/cache/pins"):
            reply = http.get(route)
            assert reply.status_code == 401
            assert reply.json()["error"]["code"] == "invalid_api_key"
        assert http.post("/v1/chat/completions", json={}).status_code == 401
        assert http.get("/livez").status_code == http.get("/readyz").status_code == 200


def test_without_tenants_any_key_and_none_are_let_in(server: ServeProcess) -> None:
    for key in (None, "anything"):
        with server.http(key) as http:
            assert http.get("/v1/models").status_code == 200


def test_a_tenant_finds_its_own_prefixes_only(tenant_server: ServeProcess, plain: Plain) -> None:
    tokens = len(plain.tokenizer.encode(TEXT))
    assert cached(tenant_server, "acme-key", TEXT) < CHUNK_TOKENS
    assert cached(tenant_server, "acme-key", TEXT) == found_again(tokens)
    assert cached(tenant_server, "bolt-key", TEXT) < CHUNK_TOKENS


def test_a_salt_is_a_cache_of_its_own(tenant_server: ServeProcess, plain: Plain) -> None:
    text = "Salted: " + TEXT
    tokens = len(plain.tokenizer.encode(text))
    assert cached(tenant_server, "acme-key", text, cache_salt="one") == 0
    assert cached(tenant_server, "acme-key", text) < CHUNK_TOKENS
    assert cached(tenant_server, "acme-key", text, cache_salt="two") == 0
    assert cached(tenant_server, "acme-key", text, cache_salt="one") == found_again(tokens)
    # Ignored fields change nothing.
    assert cached(tenant_server, "acme-key", text, prompt_cache_key="k", user="u") == found_again(tokens)


def test_the_admin_sees_and_does_not_generate(tenant_server: ServeProcess) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        cached(tenant_server, "admin-key", TEXT)
    with tenant_server.http("acme-key") as http:
        assert http.get("/metrics").status_code == 403
    with tenant_server.http("admin-key") as http:
        assert http.get("/metrics").status_code == 200


def test_the_tree_is_the_callers(tenant_server: ServeProcess) -> None:
    for key in ("acme-key", "bolt-key"):
        cached(tenant_server, key, "Seen in the tree. " + TEXT)
    scopes = {}
    for key in ("acme-key", "bolt-key", "admin-key"):
        with tenant_server.http(key) as http:
            shown = Snapshot.from_json(http.get("/v1/cache/tree").content)
        scopes[key] = {shown.namespaces[node.namespace].scope for node in shown.nodes}
    assert scopes["acme-key"] == {"tenant:acme"} and scopes["bolt-key"] == {"tenant:bolt"}
    assert scopes["admin-key"] >= {"tenant:acme", "tenant:bolt"}


def test_explain_says_what_a_request_would_find(tenant_server: ServeProcess, plain: Plain) -> None:
    text = "Explained: " + TEXT
    cached(tenant_server, "acme-key", text)
    with tenant_server.http("acme-key") as http:
        found = http.post("/v1/cache/explain", json={"prompt": text}).json()
        assert found["verdict"] in ("hit", "tail")
        assert found["cached_tokens"] == cached(tenant_server, "acme-key", text)
        other = text[:40] + "but otherwise from here on, for quite a while. "
        told = http.post("/v1/cache/explain", json={"prompt": other}).json()
        ours, theirs = plain.tokenizer.encode(text), plain.tokenizer.encode(other)
        place = next(i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b)
        assert (told["verdict"], told["divergence"]["position"]) == ("diverged", place)
        assert http.post("/v1/cache/explain", json={"prompt": text, "tenant": "bolt"}).status_code == 403
    with tenant_server.http("bolt-key") as http:
        assert http.post("/v1/cache/explain", json={"prompt": text}).json()["cached_tokens"] < CHUNK_TOKENS
    with tenant_server.http("admin-key") as http:
        asked = {"prompt": text, "tenant": "acme"}
        assert http.post("/v1/cache/explain", json=asked).json()["cached_tokens"] == found["cached_tokens"]


def test_pins_are_set_listed_and_ended_by_their_tenant(tenant_server: ServeProcess, plain: Plain) -> None:
    text = "Pinned: " + TEXT
    tokens = len(plain.tokenizer.encode(text))
    whole = tokens // CHUNK_TOKENS * CHUNK_TOKENS
    with tenant_server.http("acme-key") as acme, tenant_server.http("bolt-key") as bolt:
        card = acme.post("/v1/cache/pins", json={"prompt": text, "name": "mine"}).json()
        assert (card["tokens"], card["pinned_tokens"], card["expires_at"]) == (tokens, whole, None)
        assert (card["name"], card["scope"]) == ("mine", "tenant:acme")
        # The request computed it: the first completion finds it.
        assert cached(tenant_server, "acme-key", text) >= min(whole, tokens - 1)
        brief = acme.post("/v1/cache/pins", json={"prompt": text, "ttl_seconds": 3600}).json()
        assert brief["expires_at"] > 0
        assert [pin["id"] for pin in acme.get("/v1/cache/pins").json()["data"]] == [card["id"], brief["id"]]
        assert bolt.get("/v1/cache/pins").json()["data"] == []
        assert bolt.delete(f"/v1/cache/pins/{card['id']}").status_code == 404
        for pin in (card, brief):
            assert acme.delete(f"/v1/cache/pins/{pin['id']}").json() == {"id": pin["id"], "deleted": True}
            assert acme.delete(f"/v1/cache/pins/{pin['id']}").status_code == 404
        assert acme.get("/v1/cache/pins").json()["data"] == []
        assert acme.post("/v1/cache/pins", json={"prompt": "a"}).status_code == 400
        assert acme.post("/v1/cache/pins", json={"prompt": text, "tokens": [1]}).status_code == 400


def test_a_pin_beyond_the_budget_is_409(start_server: Any) -> None:
    # One chunk of this model: 8 tokens x 3 layers x 2 heads x 16 numbers x 4 bytes, keys and values.
    chunk_bytes = 8 * 3 * 2 * 16 * 4 * 2
    server = start_server("--pin-budget", str(3 * chunk_bytes))
    with server.http() as http:
        assert http.post("/v1/cache/pins", json={"tokens": [7] * 24}).status_code == 200
        refused = http.post("/v1/cache/pins", json={"tokens": [9] * 8})
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "pin_budget_exceeded"


def test_metrics_count_by_tenant(tenant_server: ServeProcess, plain: Plain) -> None:
    def metric(name: str) -> float:
        return tenant_server.metric(name, "admin-key", 'tenant="bolt"')

    text = "Counted: " + TEXT
    tokens = len(plain.tokenizer.encode(text))
    before = [metric(f"kvtrie_{kind}_tokens_total") for kind in ("prompt", "cached", "generation")]
    first, again = cached(tenant_server, "bolt-key", text), cached(tenant_server, "bolt-key", text)
    after = [metric(f"kvtrie_{kind}_tokens_total") for kind in ("prompt", "cached", "generation")]
    assert [b - a for a, b in zip(before, after)] == [2 * tokens, first + again, 2]
    assert again == found_again(tokens)
