"""The server that is measured: its address, keys and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from kvtrie.api.http.address import parse_address
from kvtrie.prefix_tree.errors import AccessDenied, InputError, KvtrieError

ANSWER_SECONDS = 30.0
"""How long the server may take to name its models."""


class TargetUnavailable(KvtrieError):
    """The server cannot be reached, or speaks no OpenAI API."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests are sent, and with whose keys."""

    base_url: str
    """Without `/v1`; over a Unix socket its host is only a name."""
    socket_path: str = ""
    """Of a Unix socket; empty for TCP."""
    keys: Sequence[str] = field(default=(), repr=False)
    """API keys: none, one for all tenants, or one for each."""

    def headers(self, tenant: int) -> dict[str, str]:
        """Headers of a tenant's request."""
        # A compressed stream would arrive in pieces that are no events.
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if self.keys:
            headers["authorization"] = f"Bearer {self.keys[tenant % len(self.keys)]}"
        return headers

    def client(self, max_connections: int) -> httpx.AsyncClient:
        """A client of this server. It ignores HTTP_PROXY and the like: a proxy would be measured too."""
        # Servers mostly close idle connections after 5 s; a request sent at that moment would fail.
        limits = httpx.Limits(
            max_connections=max_connections, max_keepalive_connections=max_connections, keepalive_expiry=2.0
        )
        transport = httpx.AsyncHTTPTransport(limits=limits, uds=self.socket_path or None, trust_env=False)
        return httpx.AsyncClient(
            base_url=self.base_url, transport=transport, timeout=None, trust_env=False, follow_redirects=False
        )


def parse_target(url: str, keys: Sequence[str] = (), tenants: int = 1) -> Target:
    """A target from its URL, with or without `/v1` at the end.

    Raises:
        InputError: no URL of http, https or a Unix socket; a number of keys that is neither 0, 1 nor `tenants`; or
            a key that no HTTP header can carry.
    """
    if len(keys) > 1 and len(keys) != tenants:
        raise InputError(f"pass one --api-key, or one for each of the {tenants} tenants, not {len(keys)}")
    for key in keys:
        if not key or not all("!" <= char <= "~" for char in key):
            raise InputError("the API key has characters that no HTTP header can carry")
    if url.startswith("unix:"):
        address = parse_address(url)
        return Target(address.base_url, address.socket_path, tuple(keys))
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or parts.query or parts.fragment:
        raise InputError(f"--url {url!a} is none of http://host:port, https://host[/path] and unix:///path")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Target(f"{parts.scheme}://{parts.netloc}{path}", keys=tuple(keys))


async def only_model(target: Target) -> str:
    """The model that the server serves.

    Raises:
        InputError: it serves none or several: one must be named.
        AccessDenied: it refuses the key.
        TargetUnavailable: it does not answer as an OpenAI API does.
    """
    async with target.client(1) as http:
        try:
            reply = await http.get("/v1/models", headers=target.headers(0), timeout=ANSWER_SECONDS)
        except httpx.HTTPError as error:
            raise TargetUnavailable(
                f"{target.base_url} does not answer: {error or type(error).__name__}"
            ) from None
    if reply.status_code in (401, 403):
        raise AccessDenied(f"{target.base_url} refuses the key: pass --api-key, or set KVTRIE_API_KEY")
    names: list[str] = []
    try:
        if reply.status_code == 200:
            names = [str(one["id"]) for one in reply.json()["data"]]
    except (ValueError, KeyError, TypeError):
        names = []
    if not names:
        raise TargetUnavailable(
            f"{target.base_url} answered HTTP {reply.status_code} to GET /v1/models, without a model: pass --model"
        )
    if len(names) > 1:
        raise InputError(f"{target.base_url} serves {', '.join(names[:8])}: pass one of them as --model")
    return names[0]
