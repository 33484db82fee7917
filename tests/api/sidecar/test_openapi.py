"""The OpenAPI document says what the routes do: every route is in it, and real replies are what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.openapi.models import OpenAPI
from fastapi.routing import APIRoute

from kvtrie.api.http.record_frames import Limits, frame
from kvtrie.api.http.tenants import Tenants
from kvtrie.api.sidecar import app as app_module
from kvtrie.api.sidecar.openapi import openapi_document
from kvtrie.api.sidecar.sidecar import Sidecar

TENANTS = '[admin]\napi_key = "admin-key"\n[tenants.acme]\napi_key = "acme-key"\n'


def documented(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}


def fits(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> bool:
    """Whether `value` is what `schema` says, as far as the words that the document uses go."""
    known = {"$ref", "oneOf", "type", "required", "properties", "additionalProperties", "items", "enum", "const",
             "minimum", "pattern", "description"}  # fmt: skip
    assert set(schema) <= known, set(schema) - known
    if "$ref" in schema:
        return fits(value, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    if "oneOf" in schema:
        return sum(fits(value, one, document) for one in schema["oneOf"]) == 1
    if "enum" in schema:
        return value in schema["enum"]
    if "const" in schema:
        return bool(value == schema["const"])
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    if not isinstance(value, kinds[schema["type"]]):
        return False
    if isinstance(value, dict):
        properties, more = schema.get("properties", {}), schema.get("additionalProperties")
        inside = [fits(value[name], one, document) for name, one in properties.items() if name in value]
        if properties and more is None:
            inside.append(set(value) <= set(properties))
        if more is not None:
            inside += [fits(one, more, document) for one in value.values()]
        return set(schema.get("required", ())) <= set(value) and all(inside)
    if isinstance(value, list):
        return all(fits(one, schema["items"], document) for one in value)
    return True


def check(reply: httpx.Response, document: dict[str, Any]) -> None:
    """Checks a reply against what the document says of its route and status."""
    operation = document["paths"][reply.request.url.path][reply.request.method.lower()]
    assert str(reply.status_code) in operation["responses"], (reply.request.url.path, reply.status_code)
    content = operation["responses"][str(reply.status_code)]["content"]
    kind = reply.headers["content-type"].partition(";")[0]
    assert kind in content
    if kind == "application/json":
        assert fits(reply.json(), content[kind]["schema"], document), reply.text


@pytest.mark.parametrize("with_keys", [False, True])
def test_it_is_an_openapi_document(with_keys: bool) -> None:
    document = openapi_document(Limits(), with_keys=with_keys)
    OpenAPI.model_validate(document)
    assert ("security" in document) == with_keys


def test_every_route_is_in_it_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FastAPI] = []

    class Noted(FastAPI):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr(app_module, "FastAPI", Noted)
    app_module.create_app(Sidecar(), Tenants())
    routes = {(r.path, method) for r in made[0].routes if isinstance(r, APIRoute) for method in r.methods}
    assert routes == documented(openapi_document(Limits(), with_keys=False))
    assert len(routes) == 8


def test_real_replies_are_what_it_says(
    start_sidecar: Callable[..., Any], tmp_path: Path, chain: Callable[..., Any]
) -> None:
    (tmp_path / "tenants.toml").write_text(TENANTS)
    sidecar = start_sidecar(tenants=tmp_path / "tenants.toml")
    path = chain(list(range(8)))
    with sidecar.http() as http:
        document = http.get("/openapi.json").json()
        assert document == openapi_document(Limits(), with_keys=True)
        for route, method in documented(document):
            reply = http.request(method, route)
            check(reply, document)
            # Without a key exactly those are answered that say they need none.
            operation = document["paths"][route][method.lower()]
            assert (reply.status_code == 401) == (operation.get("security") != [])
        check(http.get("/livez", headers={"Origin": "http://a.example"}), document)
    with sidecar.http("acme-key") as http:
        replies = [
            http.post("/v1/records/put", content=frame([*path.records, path.records[0], b"no record"])),
            http.post("/v1/records/get", content=path.namespace.digest + b"".join(path.keys)),
            http.post("/v1/match", content=path.namespace.digest + path.tokens),
            http.get("/v1/tree"),
            http.post("/v1/match", content=b"short"),
            http.post("/v1/records/get", content=bytes(32 + 16 * 20000)),
            http.post("/v1/match", content=bytes(32), headers={"Kvtrie-Scope": "tools"}),
            http.get("/metrics"),
        ]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 200, 400, 413, 403, 403]
    with sidecar.http("admin-key") as http:
        replies.append(http.get("/metrics"))
    with sidecar.http("guess") as http:
        # Ten at once and one a second: how many of these are looked at depends on how long they take.
        replies += [http.get("/v1/tree") for _ in range(200)]
    assert {reply.status_code for reply in replies} >= {401, 429}
    for reply in replies:
        check(reply, document)
