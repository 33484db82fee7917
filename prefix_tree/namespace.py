"""The namespace: everything besides tokens that cached keys and values depend on.

Two requests may share KV only where every field here is equal; its digest is the parent key of a
path's first chunk. `explain` compares fields one by one, so they are kept readable, not only hashed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property

from kvtrie.prefix_tree.errors import InputError


@dataclass(frozen=True)
class Namespace:
    """Complete identity of cached KV. Digests are lower-case hex; `""` means "there is none"."""

    scope: str
    """Tenant or shared scope that may read this KV, e.g. `tenant:acme` or `shared:tools`."""
    salt: str = field(default="", repr=False)
    """Secret of the scope: without it nobody can compute the scope's chunk keys."""
    model_config: str = ""
    """Digest of the model's configuration."""
    weights: str = ""
    """Digest of every parameter and buffer."""
    revision: str = ""
    """Revision of the weights as their publisher names it."""
    adapter: str = ""
    """Digest of the active adapters' contents, order and scaling."""
    kv_dtype: str = ""
    """Element type of keys and values in the pool, e.g. `float32`."""
    layout: str = ""
    """Canonical JSON of layers, heads, dims, RoPE parameters and sliding windows."""
    chunk_tokens: int = 64
    """Tokens per chunk."""
    fidelity: str = "exact"
    """`exact`, or the name and parameters of what made the KV lossy."""

    @cached_property
    def digest(self) -> bytes:
        """32 bytes: sha256 over `name, length, value` of every field, so no two can trade places."""
        h = hashlib.sha256(b"kvtrie namespace 1")
        for name, value in asdict(self).items():
            encoded = str(value).encode()
            h.update(b"%s\0%d\0%s" % (name.encode(), len(encoded), encoded))
        return h.digest()

    def differences(self, other: Namespace) -> list[str]:
        """Names of the fields in which the two differ, in declaration order."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]

    def public_fields(self) -> dict[str, str | int]:
        """Fields for dumps and stores: the salt is a secret, so only a digest of it is shown."""
        shown = asdict(self)
        if self.salt:
            shown["salt"] = "sha256:" + hashlib.sha256(self.salt.encode()).hexdigest()[:16]
        return shown

    def to_json(self) -> str:
        """Canonical JSON of `public_fields`, the payload of a namespace record."""
        return json.dumps(self.public_fields(), sort_keys=True, separators=(",", ":"))


def namespace_fields(document: Mapping[str, object]) -> dict[str, str | int]:
    """Checks a decoded `Namespace.to_json` document.

    Raises:
        InputError: a field is missing, unknown or of the wrong type.
    """
    known = {f.name: f.type for f in fields(Namespace)}
    if lacking := [name for name in known if name not in document]:
        raise InputError(f"namespace document has fields missing: {', '.join(lacking)}")
    if unknown := [name for name in document if name not in known]:
        raise InputError(f"namespace document has fields that no namespace has: {ascii(unknown[0])[:60]}")
    checked: dict[str, str | int] = {}
    for name, value in document.items():
        wanted = int if name == "chunk_tokens" else str
        if not isinstance(value, wanted) or isinstance(value, bool):
            kind = "a whole number" if wanted is int else "a text"
            raise InputError(f"namespace field {name} is {ascii(value)[:60]}, and must be {kind}")
        checked[name] = value
    return checked
