"""The OpenAPI document says what the routes do: every route is in it, and real replies are what it says."""

from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import FastAPI
from fastapi.openapi.models import OpenAPI
from fastapi.routing import APIRoute

from kvtrie.api.server import app as app_module
from kvtrie.api.server.openapi import openapi_document
from kvtrie.api.server.server_config import ServerConfig
from tests.api.server.conftest import NAME, ServeProcess

CONFIG = ServerConfig(names=(NAME,), source=NAME)
TEXT = "Long enough for several chunks of eight tokens, and a little more than that."


def path_in(document: dict[str, Any], path: str) -> str:
    """The document's path that a request's path is one of."""
    if path in document["paths"]:
        return path
    stem = path.rpartition("/")[0]
    return next(known for known in document["paths"] if known.startswith(stem + "/{"))


def check(reply: httpx.Response, document: dict[str, Any]) -> None:
    """Checks a reply against what the document says of its route and status."""
    operation = document["paths"][path_in(document, reply.request.url.path)][reply.request.method.lower()]
    assert str(reply.status_code) in operation["responses"], (reply.request.url.path, reply.status_code)
    content = operation["responses"][str(reply.status_code)]["content"]
    kind = reply.headers["content-type"].partition(";")[0]
    assert kind in content
    if kind == "application/json":
        schema = {**content[kind]["schema"], "components": document["components"]}
        jsonschema.validate(reply.json(), schema)


@pytest.mark.parametrize("with_keys", [False, True])
def test_it_is_an_openapi_document(with_keys: bool) -> None:
    document = openapi_document(CONFIG, with_keys=with_keys)
    OpenAPI.model_validate(document)
    assert ("security" in document) == with_keys
    for form in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(form)


def test_every_route_is_in_it_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FastAPI] = []

    class Noted(FastAPI):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self)

    class Anything:
        def __getattr__(self, name: str) -> Any:
            return CONFIG.limits if name == "limits" else Anything()

    monkeypatch.setattr(app_module, "FastAPI", Noted)
    monkeypatch.setattr(app_module, "openapi_document", lambda *_, **__: {"paths": {}})
    monkeypatch.setattr(app_module, "RequestGuard", lambda app, *_, **__: app)
    app_module.create_app(Anything())  # type: ignore[arg-type]
    routes = {
        (route.path.replace(":path}", "}"), method)
        for route in made[0].routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    document = openapi_document(CONFIG, with_keys=False)
    assert routes == {
        (path, method.upper()) for path, methods in document["paths"].items() for method in methods
    }
    assert len(routes) == 15


def test_real_replies_are_what_it_says(tenant_server: ServeProcess) -> None:
    user = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 3}
    with tenant_server.http() as http:
        document = http.get("/openapi.json").json()
        assert document == openapi_document(ServerConfig(names=(NAME,), source="any"), with_keys=True)
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                reply = http.request(method, path.replace("{name}", NAME).replace("{pin_id}", "none"))
                check(reply, document)
                # Without a key exactly those are answered that say they need none.
                assert (reply.status_code == 401) == (operation.get("security") != [])
        check(http.get("/v1/models", headers={"Origin": "http://a.example"}), document)
    with tenant_server.http("acme-key") as http:
        pin = http.post("/v1/cache/pins", json={"prompt": TEXT, "ttl_seconds": 60})
        replies = [
            http.post("/v1/chat/completions", json={**user, "logprobs": True, "top_logprobs": 2, "n": 2}),
            http.post("/v1/chat/completions", json={**user, "stream": True}),
            http.post("/v1/completions", json={"prompt": TEXT, "logprobs": 1}),
            http.post("/v1/completions", json={"prompt": ""}),
            http.get("/v1/models"),
            http.get(f"/v1/models/{NAME}"),
            http.get("/v1/models/none"),
            http.post("/tokenize", json={"prompt": TEXT, "return_token_strs": True}),
            http.post("/detokenize", json={"tokens": [9, 10]}),
            http.post("/detokenize", json={"tokens": ["x"]}),
            http.get("/v1/cache/tree"),
            http.post("/v1/cache/explain", json={"prompt": TEXT}),
            pin,
            http.get("/v1/cache/pins"),
            http.delete(f"/v1/cache/pins/{pin.json()['id']}"),
            http.delete(f"/v1/cache/pins/{pin.json()['id']}"),
            http.get("/metrics"),
        ]
    wanted = [200] * 6 + [404, 200, 200, 400] + [200] * 5 + [404, 403]
    assert [reply.status_code for reply in replies] == wanted
    for reply in replies:
        check(reply, document)
    with tenant_server.http("admin-key") as http:
        check(http.get("/metrics"), document)
        check(http.get("/v1/cache/tree"), document)
