"""Requests of the demo: system prompts by tenant and users' messages, shipped or from a file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.read_json import read_json

PROMPTS = Path(__file__).parent / "prompts"
"""`<tenant>.md` and `requests.jsonl`; in the repository a link to `examples/prompts`."""

_FORM = 'must be an object with the texts "tenant", "system" and "user"'


@dataclass(frozen=True, slots=True)
class DemoRequest:
    """One user's message to one tenant's assistant."""

    tenant: str
    system: str
    user: str

    def text(self) -> str:
        """The prompt: the system prompt first, so that a tenant's requests share it."""
        return f"<|system|>\n{self.system}\n<|user|>\n{self.user}\n<|assistant|>\n"


def shipped_requests() -> list[DemoRequest]:
    """The requests that come with kvtrie, in arrival order."""
    lines = (PROMPTS / "requests.jsonl").read_text(encoding="utf-8").splitlines()
    requests = []
    for line in lines:
        said = json.loads(line)
        system = (PROMPTS / f"{said['tenant']}.md").read_text(encoding="utf-8")
        requests.append(DemoRequest(said["tenant"], system, said["user"]))
    return requests


def first_of_each_tenant(requests: list[DemoRequest], count: int) -> list[DemoRequest]:
    """At most `count` requests of each tenant, in arrival order.

    Raises:
        InputError: `count` is below 1.
    """
    if count < 1:
        raise InputError(f"the requests per tenant must be at least 1, got {count}")
    seen: Counter[str] = Counter()
    kept = []
    for request in requests:
        seen[request.tenant] += 1
        if seen[request.tenant] <= count:
            kept.append(request)
    return kept


def read_requests(path: Path) -> list[DemoRequest]:
    """Requests of a JSONL file of `{"tenant", "system", "user"}`.

    Raises:
        InputError: names the line that is not such an object, or the file when it holds none.
        OSError: the file cannot be read.
    """
    requests: list[DemoRequest] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            said = read_json(line)
        except InputError as error:
            raise InputError(f"{path} line {number} {error}; each line {_FORM}") from None
        fields = ("tenant", "system", "user")
        if not isinstance(said, dict) or not all(isinstance(said.get(name), str) for name in fields):
            raise InputError(f"{path} line {number} {_FORM}")
        requests.append(DemoRequest(*(said[name] for name in fields)))
    if not requests:
        raise InputError(f"{path} holds no requests; each line {_FORM}")
    return requests
