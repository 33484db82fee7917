"""Everything that is sent, fixed before anything is sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvtrie.api.load.prompt import LoadPrompt
from kvtrie.prefix_tree.errors import InputError

ENDPOINTS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
"""Paths by the name of the endpoint."""


@dataclass(frozen=True, slots=True)
class RequestForm:
    """What every request of a run has, besides its prompt."""

    endpoint: str
    """A name of `ENDPOINTS`."""
    max_tokens: int
    ignore_eos: bool = False
    """Whether answers have `max_tokens` tokens even where the model would end them; no field of OpenAI's."""
    tenant_field: str | None = None
    """A field that gets the tenant's name, `cache_salt` say, to keep tenants apart where there are no keys."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields; they replace others, and one that is None removes its field."""

    def __post_init__(self) -> None:
        if self.endpoint not in ENDPOINTS:
            raise InputError(f"the endpoint must be one of {', '.join(ENDPOINTS)}, got {self.endpoint!a}")
        if self.max_tokens < 1:
            raise InputError(f"--max-tokens must be at least 1, got {self.max_tokens}")
        if self.extra_body.get("stream", True) is not True:
            raise InputError("--extra-body must leave stream true: times are those of streamed pieces")

    def body(self, prompt: LoadPrompt, model: str) -> dict[str, Any]:
        """The request's JSON."""
        asked: dict[str, Any] = {"model": model}
        if self.endpoint == "completions":
            asked["prompt"] = list(prompt.tokens) if prompt.tokens else prompt.text
        else:
            asked["messages"] = [{"role": one.role, "content": one.content} for one in prompt.messages]
        asked |= {
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            asked["ignore_eos"] = True
        if self.tenant_field is not None:
            asked[self.tenant_field] = tenant_name(prompt.tenant)
        return {name: value for name, value in {**asked, **self.extra_body}.items() if value is not None}

    def content(self, prompt: LoadPrompt, model: str) -> bytes:
        """`body` as bytes."""
        return json.dumps(self.body(prompt, model), ensure_ascii=False).encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Requests in order, and when each is due."""

    prompts: Sequence[LoadPrompt]
    form: RequestForm
    offsets: Sequence[float] | None = None
    """Seconds from the start at which each is due, never decreasing. None for a closed loop."""
    concurrency: int | None = None
    """Of a closed loop: requests that are under way at a time."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError("there is no request to send: --requests must be at least 1")
        if (self.offsets is None) == (self.concurrency is None):
            raise InputError("a plan has either offsets, or the concurrency of a closed loop")
        if self.offsets is not None and len(self.offsets) != len(self.prompts):
            raise InputError(f"{len(self.prompts)} requests cannot have {len(self.offsets)} offsets")
        if self.concurrency is not None and self.concurrency < 1:
            raise InputError(f"--concurrency must be at least 1, got {self.concurrency}")
        if self.form.endpoint == "chat" and not all(one.messages for one in self.prompts):
            raise InputError("prompts of token ids need --endpoint completions: chats are made of messages")

    def lines(self) -> list[str]:
        """One JSON text for each request: its offset (None in a closed loop), tenant and body without a model."""
        offsets: Sequence[float | None] = self.offsets or [None] * len(self.prompts)
        found = []
        for offset, prompt in zip(offsets, self.prompts):
            body = self.form.body(prompt, "")
            body.pop("model", None)
            line = {"offset": offset, "tenant": prompt.tenant, "chat": prompt.chat, "body": body}
            found.append(json.dumps(line, sort_keys=True))
        return found

    def digest(self) -> str:
        """SHA-256 over `lines`, in hex: equal for two servers that got the same load."""
        digest = hashlib.sha256(f"concurrency {self.concurrency}\n".encode())
        for line in self.lines():
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()


def tenant_name(tenant: int) -> str:
    """The name that a tenant has in requests and reports."""
    return f"tenant-{tenant}"
