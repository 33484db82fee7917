"""The routes of a real process, over TCP and a Unix socket, as tenants see them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvtrie.api.http.record_frames import frame
from kvtrie.api.tiers import sidecar_tier as client
from kvtrie.api.tiers.sidecar_tier import SidecarTier
from kvtrie.prefix_tree import Namespace, Snapshot
from kvtrie.prefix_tree.errors import AccessDenied
from kvtrie.store import encode_namespace_record

TENANTS = """
[admin]
api_key = "admin-key"
[tenants.acme]
api_key = "acme-key"
reads = ["tools"]
writes = ["tools"]
[tenants.bolt]
api_key = "bolt-key"
reads = ["tools"]
[tenants.crab]
api_key = "crab-key"
"""
Chains = Callable[..., Any]


@pytest.fixture
def closed(start_sidecar: Callable[..., Any], tmp_path: Path) -> Any:
    """A sidecar with tenants."""
    path = tmp_path / "tenants.toml"
    path.write_text(TENANTS)
    return start_sidecar(tenants=path)


def offer(tier: SidecarTier, path: Any) -> None:
    for key, record in zip(path.keys, path.records):
        assert tier.offer(path.namespace, key, lambda record=record: record)
    assert tier.flush(10.0)


class TestOpenSidecar:
    def test_serves_engines_over_tcp_and_a_unix_socket(self, sidecar: Any, chain: Chains) -> None:
        namespace = Namespace(scope="tenant:me", model_config="m", chunk_tokens=4)
        path = chain(list(range(4000)), namespace)
        writer, reader = SidecarTier(sidecar.url), SidecarTier(sidecar.unix_url)
        name = encode_namespace_record(namespace, created_at_seconds=1)
        assert writer.offer(namespace, namespace.digest[:16], lambda: name)
        offer(writer, path)
        assert writer.stats()["written_records"] == 1001
        assert reader.load(namespace, path.keys) == path.records
        assert reader.load(namespace, path.keys[500:516]) == path.records[500:516]
        assert reader.load(namespace, [bytes(16)]) == reader.load(namespace, []) == []
        assert reader.stats()["loaded_records"] == 1016
        writer.close()
        reader.close()
        with sidecar.http() as http:
            shown = Snapshot.from_json(http.get("/v1/tree").content)
            assert len(shown.nodes) == 1000
            assert shown.namespaces[0].fields["model_config"] == "m"
            assert shown.counters["cached_tokens"] == 4064
            body = namespace.digest + path.tokens
            assert http.post("/v1/match", content=body).json() == {"chunks": 999, "tokens": 3996}
            assert http.get("/livez").json() == {"live": True}
            assert http.get("/readyz").json() == {"ready": True, "store": "none"}
            metrics = http.get("/metrics").text
            assert 'kvtrie_sidecar_stored_records_total{scope="tenant:default"} 1001' in metrics

    def test_a_damaged_body_is_one_sentence(self, sidecar: Any, chain: Chains) -> None:
        path = chain(list(range(8)))
        body = frame(path.records)
        with sidecar.http() as http:
            for cut in (1, 7, 100, len(body) - 1):
                reply = http.post("/v1/records/put", content=body[:cut])
                assert reply.status_code == 400
                assert "into a frame" in reply.json()["error"]
            for length in (0, 1 << 40, (1 << 64) - 1):
                reply = http.post("/v1/records/put", content=struct.pack("<Q", length) + b"x")
                assert reply.status_code == 400
            for route in ("/v1/match", "/v1/records/get"):
                assert http.post(route, content=bytes(33)).status_code == 400
            large = http.post("/v1/records/get", content=bytes(32 + 16 * 20000))
            assert large.status_code == 413
            assert "at most" in large.json()["error"]
            assert http.get("/nothing").json() == {"error": "Not Found"}
            assert http.get("/v1/match").json() == {"error": "Method Not Allowed"}
            reply = http.post("/v1/records/put", content=frame([b"no record at all"]))
            assert reply.json() == {"stored": 0, "held": 0, "rejected": {"truncated": 1}, "unnamed": []}

    def test_announced_lengths_are_refused_before_they_are_sent(self, sidecar: Any) -> None:
        with socket.create_connection(("127.0.0.1", sidecar.port), timeout=10.0) as connection:
            head = b"POST /v1/records/put HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
            connection.sendall(head)
            assert b" 413 " in connection.recv(1 << 16)

    def test_web_pages_are_not_answered(self, sidecar: Any) -> None:
        with sidecar.http() as http:
            assert http.get("/v1/tree", headers={"Host": "attacker.example"}).status_code == 403
            assert http.get("/v1/tree", headers={"Origin": "http://127.0.0.1"}).status_code == 403
            for host in (f"localhost:{sidecar.port}", "127.0.0.1", "[::1]:7070"):
                assert http.get("/v1/tree", headers={"Host": host}).status_code == 200

    def test_a_namespace_record_lost_by_the_sidecar_is_sent_again(self, sidecar: Any, chain: Chains) -> None:
        path = chain(list(range(8)))
        name = encode_namespace_record(path.namespace, created_at_seconds=1)
        tier = SidecarTier(sidecar.url)
        assert tier.offer(path.namespace, path.namespace.digest[:16], lambda: name)
        assert tier.flush(10.0)
        sidecar.kill()
        sidecar.start()
        assert tier.offer(path.namespace, path.keys[0], lambda: path.records[0])
        assert tier.flush(10.0)
        with sidecar.http() as http:
            shown = Snapshot.from_json(http.get("/v1/tree").content)
        assert shown.counters["stored_records"] == 2
        tier.close()

    def test_a_client_remembers_a_bounded_number_of_namespaces(
        self, sidecar: Any, chain: Chains, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each tenant of an engine is a namespace; those not heard of for longest are named no more."""
        monkeypatch.setattr(client, "_MOST_NAMESPACES", 8)
        tier = SidecarTier(sidecar.url, shared_scopes=["tools"])
        for number in range(40):
            scope = "shared:tools" if number % 2 else f"tenant:{number}"
            path = chain([number] * 4, Namespace(scope=scope, salt=str(number), chunk_tokens=4))
            name = encode_namespace_record(path.namespace, created_at_seconds=1)
            assert tier.offer(path.namespace, path.namespace.digest[:16], lambda name=name: name)
            assert tier.offer(path.namespace, path.keys[0], lambda path=path: path.records[0])
        assert tier.flush(10.0)
        assert len(tier._writer._known) == 8
        tier.close()
        with sidecar.http() as http:
            shown = Snapshot.from_json(http.get("/v1/tree").content)
        scopes = [shown.namespaces[node.namespace].scope for node in shown.nodes]
        assert {scope: scopes.count(scope) for scope in scopes} == {"shared:tools": 20, "tenant:default": 20}


class TestTenants:
    def test_share_nothing_but_their_shared_scopes(self, closed: Any, chain: Chains) -> None:
        own, common = chain(list(range(8))), chain([7] * 8, Namespace(scope="shared:tools", chunk_tokens=4))
        acme = SidecarTier(closed.url, api_key="acme-key", shared_scopes=["tools"])
        bolt = SidecarTier(closed.unix_url, api_key="bolt-key", shared_scopes=["tools"])
        crab = SidecarTier(closed.url, api_key="crab-key")
        offer(acme, own)
        offer(acme, common)
        assert acme.load(own.namespace, own.keys) == own.records
        for other in (bolt, crab):
            assert other.load(own.namespace, own.keys) == []
        assert bolt.load(common.namespace, common.keys) == common.records
        # Without the scope in its configuration it is the tenant's own namespace, where nothing is.
        assert crab.load(common.namespace, common.keys) == []
        trees = {}
        for name in ("acme", "bolt", "crab", "admin"):
            with closed.http(f"{name}-key") as http:
                trees[name] = Snapshot.from_json(http.get("/v1/tree").content)
                assert http.get("/metrics").status_code == (200 if name == "admin" else 403)
        scopes = {name: sorted(n.scope for n in tree.namespaces) for name, tree in trees.items()}
        assert scopes == {
            "acme": ["shared:tools", "tenant:acme"],
            "bolt": ["shared:tools"],
            "crab": [],
            "admin": ["shared:tools", "tenant:acme"],
        }
        assert [len(trees[name].nodes) for name in scopes] == [4, 2, 0, 4]
        assert trees["crab"].counters == {"cached_tokens": 0, "matches": 1, "prompt_tokens": 16,
                                          "requests": 2, "sent_bytes": 0}  # fmt: skip
        assert trees["crab"].tiers[0].used_bytes == 0
        for tier in (acme, bolt, crab):
            tier.close()

    def test_a_reader_of_a_scope_does_not_write_it(self, closed: Any, chain: Chains) -> None:
        path = chain([7] * 8, Namespace(scope="shared:tools", chunk_tokens=4))
        bolt = SidecarTier(closed.url, api_key="bolt-key", shared_scopes=["tools"])
        assert bolt.offer(path.namespace, path.keys[0], lambda: path.records[0])
        assert bolt.flush(10.0)
        assert bolt.stats()["dropped_denied"] == 1
        assert not bolt.offer(path.namespace, path.keys[1], lambda: pytest.fail("made for nothing"))
        assert bolt.load(path.namespace, path.keys) == []
        bolt.close()

    def test_unknown_keys_and_scopes_are_refused_at_construction(self, closed: Any) -> None:
        for key in (None, "wrong", "acme-key-"):
            with pytest.raises(AccessDenied, match="api_key"):
                SidecarTier(closed.url, api_key=key)
        with pytest.raises(AccessDenied, match="tenants file"):
            SidecarTier(closed.url, api_key="crab-key", shared_scopes=["tools"])
        with pytest.raises(AccessDenied, match="tenant's key"):
            SidecarTier(closed.url, api_key="admin-key")

    def test_a_refusal_arrives_however_long_the_body_is(self, closed: Any) -> None:
        with closed.http() as http:
            for _ in range(20):
                assert http.post("/v1/records/put", content=bytes(4 << 20)).status_code == 401

    def test_every_route_needs_a_key(self, closed: Any) -> None:
        with closed.http() as http:
            for route in ("/v1/match", "/v1/records/get", "/v1/records/put"):
                assert http.post(route, content=bytes(64)).status_code == 401
            for route in ("/v1/tree", "/metrics"):
                reply = http.get(route)
                assert reply.status_code == 401
                assert reply.headers["WWW-Authenticate"] == "Bearer"
            assert http.get("/readyz").json() == {"ready": True, "store": "none"}
            assert set(http.get("/livez").json()) == {"live"}

    def test_a_refusal_does_not_tell_whether_a_scope_exists(self, closed: Any) -> None:
        def refused(scope: str) -> httpx.Response:
            with closed.http("crab-key") as http:
                return http.post("/v1/match", content=bytes(32), headers={"Kvtrie-Scope": scope})

        assert refused("tools").status_code == refused("nothing").status_code == 403
        assert refused("tools").json() == refused("nothing").json()
