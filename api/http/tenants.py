"""The tenants file: which caller an API key belongs to, and what that caller may do.

    [admin]
    api_key = "..."                    # sees every tree and /metrics; reads and writes no records

    [tenants.acme]
    api_key = "..."                    # or api_key_sha256 = "<64 hex digits>"
    reads = ["tools"]                  # shared scopes, which exist by being named
    writes = ["tools"]
    share = "512MiB"                   # of the host tier: kept while others have more than their own share
    quota = "4GiB"                     # above it, this tenant's own chunks are evicted first

Without a file there is one tenant, `default`, who needs no key and may do everything.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvtrie.api.byte_size import parse_bytes
from kvtrie.prefix_tree.errors import AccessDenied, InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", re.ASCII)
"""Tenants and shared scopes. No colon: `tenant:x` and `shared:x` cannot be made to look alike."""
_API_KEY = re.compile(r"[!-~]{1,512}\Z", re.ASCII)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z", re.ASCII)
_PLACEHOLDER = re.compile(
    r"(replace|change)[-_. ]?(me|this)|place[-_. ]?holder|your[-_. ]?(api[-_. ]?)?key", re.I
)
"""Keys of examples. Whoever has read the example has them."""
_PLACEHOLDERS = (
    "replace-me",
    "replace-me-{name}",
    "changeme",
    "change-me",
    "placeholder",
    "your-api-key",
    "",
)
"""The same where a file has digests; of the empty key, too, which every request with `Bearer` alone presents."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request, once its key is known."""

    name: str
    own_scope: str | None
    """`tenant:NAME`; None for an admin, who has no records."""
    reads: frozenset[str] = frozenset()
    """Shared scopes by name."""
    writes: frozenset[str] = frozenset()
    """Shared scopes by name, each of them also in `reads`."""
    is_admin: bool = False
    """Sees the trees of all, and the metrics."""
    any_shared: bool = False
    """The open tenant: every well-formed shared scope is its to read and write."""

    def reading(self, shared: str | None) -> str:
        """The scope of a lookup: the caller's own, or the shared one that a header names.

        Raises:
            AccessDenied: this caller may not read it. The error is the same if no such scope exists.
        """
        return self._scope(shared, self.reads, "read")

    def writing(self, shared: str | None) -> str:
        """As `reading`, for puts."""
        return self._scope(shared, self.writes, "write")

    def visible(self) -> frozenset[str] | None:
        """Scopes whose trees and counters this caller may see; None for all."""
        if self.is_admin:
            return None
        own = () if self.own_scope is None else (self.own_scope,)
        return frozenset((*own, *(f"shared:{name}" for name in self.reads)))

    def _scope(self, shared: str | None, listed: frozenset[str], verb: str) -> str:
        if self.own_scope is None:
            raise AccessDenied(f"the admin key does not {verb} records: use a tenant's key")
        if shared is None:
            return self.own_scope
        if shared in listed or (self.any_shared and NAME.match(shared)):
            return f"shared:{shared}"
        raise AccessDenied(
            f"tenant {self.name} may not {verb} that shared scope: list it under {verb}s in the tenants file"
        )


OPEN_CALLER = Caller("default", "tenant:default", is_admin=True, any_shared=True)


@dataclass(frozen=True, slots=True)
class Tenants:
    """Every caller by the sha256 of its key. The default is the open server, without keys."""

    callers: Mapping[bytes, Caller] | None = field(default=None, repr=False)
    """None for the open server."""
    shares: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the host tier that a scope keeps, for those that have a share."""
    quotas: Mapping[str, int] = field(default_factory=dict)
    """Bytes above which a scope's own chunks are evicted first, for those that have a quota."""

    @property
    def is_open(self) -> bool:
        """Whether anyone who can connect may do everything."""
        return self.callers is None

    def authenticate(self, authorization: str | None) -> Caller | None:
        """The caller of this `Authorization` header; None if its key is unknown.

        Compares with every key, in constant time each: neither a near miss nor a tenant's place in the
        file shows in how long it takes.
        """
        if self.callers is None:
            return OPEN_CALLER
        kind, _, key = (authorization or "").partition(" ")
        presented = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for digest, caller in self.callers.items():
            if hmac.compare_digest(digest, presented):
                found = caller
        return found if kind.lower() == "bearer" else None


def load_tenants(path: Path) -> Tenants:
    """Reads a tenants file.

    Raises:
        InputError: it cannot be read or is not TOML; or it names what is missing, unknown or malformed, or
            whose key is still an example's.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"tenants file {path} cannot be read: {error.strerror}") from None
    # UnicodeDecodeError and TOMLDecodeError both are ValueErrors.
    except ValueError as error:
        raise InputError(f"tenants file {path} is not TOML: {error}") from None
    return _Reader(path).read(document)


class _Reader:
    """Turns a parsed file into callers. A key never appears in an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._callers: dict[bytes, Caller] = {}
        self._shares: dict[str, int] = {}
        self._quotas: dict[str, int] = {}

    def read(self, document: Mapping[str, object]) -> Tenants:
        self._only(document, "the file", {"admin", "tenants"})
        if "admin" in document:
            admin = self._table(document["admin"], "admin")
            self._only(admin, "[admin]", {"api_key", "api_key_sha256"})
            self._add(admin, "[admin]", Caller("admin", None, is_admin=True))
        tenants = self._table(document.get("tenants"), "tenants")
        if not tenants:
            raise self._wrong("[tenants]", "names no tenant; add [tenants.NAME] with an api_key")
        for name, value in tenants.items():
            place = f"[tenants.{name}]"
            if not NAME.match(name):
                raise self._wrong(place, "is no name: letters, digits, `.`, `_`, `-`, at most 64")
            table = self._table(value, f"tenants.{name}")
            self._only(table, place, {"api_key", "api_key_sha256", "reads", "writes", "share", "quota"})
            reads, writes = self._names(table, place, "reads"), self._names(table, place, "writes")
            # The reply to a put shows which chunks the scope holds, so a writer is a reader.
            if writes - reads:
                raise self._wrong(place, f"writes {sorted(writes - reads)} without reading: add to reads")
            scope = f"tenant:{name}"
            self._add(table, place, Caller(name, scope, reads, writes))
            for limits, limit in ((self._shares, "share"), (self._quotas, "quota")):
                if limit in table:
                    limits[scope] = self._bytes(table[limit], place, limit)
        return Tenants(self._callers, self._shares, self._quotas)

    def _add(self, table: Mapping[str, object], place: str, caller: Caller) -> None:
        digest = self._key_digest(table, place, caller.name)
        if digest in self._callers:
            raise self._wrong(place, f"has the same key as {self._callers[digest].name}")
        self._callers[digest] = caller

    def _key_digest(self, table: Mapping[str, object], place: str, caller_name: str) -> bytes:
        # 1. One of the two forms, well formed.
        if ("api_key" in table) == ("api_key_sha256" in table):
            raise self._wrong(place, "needs either api_key or api_key_sha256")
        name = "api_key" if "api_key" in table else "api_key_sha256"
        value = table[name]
        wanted = _API_KEY if name == "api_key" else _SHA256
        if not isinstance(value, str) or not wanted.match(value):
            form = "1 to 512 visible ASCII characters" if name == "api_key" else "64 hex digits"
            raise self._wrong(place, f"{name} must be a string of {form}")
        digest = hashlib.sha256(value.encode()).digest() if name == "api_key" else bytes.fromhex(value)
        # 2. Not a key that everybody can read in the examples.
        known = [text.format(name=caller_name) for text in _PLACEHOLDERS]
        if (name == "api_key" and _PLACEHOLDER.search(value)) or digest in map(_sha256, known):
            raise self._wrong(
                place,
                f"{name} is a placeholder; put in a key of your own, e.g. what `openssl rand -hex 32` prints",
            )
        return digest

    def _bytes(self, value: object, place: str, limit: str) -> int:
        if not isinstance(value, (str, int)):
            raise self._wrong(place, f"{limit} must be a size like 512MiB, got {value!r}")
        try:
            return parse_bytes(value)
        except InputError as error:
            raise self._wrong(place, f"{limit}: {error}") from None

    def _names(self, table: Mapping[str, object], place: str, field_name: str) -> frozenset[str]:
        value = table.get(field_name, [])
        if not isinstance(value, list):
            raise self._wrong(place, f"{field_name} must be a list of names, got {value!r}")
        for name in value:
            if not isinstance(name, str) or not NAME.match(name):
                raise self._wrong(place, f"{field_name} has {name!r}, which is no shared scope's name")
        return frozenset(value)

    def _table(self, value: object, name: str) -> Mapping[str, object]:
        if value is not None and not isinstance(value, dict):
            raise self._wrong(f"[{name}]", "must be a table")
        return value or {}

    def _only(self, table: Mapping[str, object], place: str, known: set[str]) -> None:
        unknown = sorted(set(table) - known)
        if unknown:
            raise self._wrong(place, f"has {unknown[0]!r}; known are {', '.join(sorted(known))}")

    def _wrong(self, place: str, problem: str) -> InputError:
        return InputError(f"tenants file {self._path}: {place} {problem}")


def _sha256(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
