"""Scopes: tenants, and shared scopes that listed tenants may read."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping

from kvtrie.prefix_tree.errors import AccessDenied, InputError

DEFAULT_TENANT = "default"


class Scopes:
    """Names of scopes, and who may read which.

    Args:
        shared: name of each shared scope -> tenants that may read it; `"*"` among them means all.
        salt: secret from which every scope's own salt is derived; "" for none.

    Raises:
        InputError: a name that is empty or holds a colon.
    """

    def __init__(self, shared: Mapping[str, Collection[str]] | None = None, salt: str = "") -> None:
        self._shared = {name: frozenset(readers) for name, readers in (shared or {}).items()}
        for name, readers in (shared or {}).items():
            _checked("shared scope", name)
            if isinstance(readers, str):
                raise InputError(
                    f"readers of shared scope {name!r} must be a list of tenants, got {readers!r}"
                )
        self._salt = salt.encode()

    def of_tenant(self, tenant: str | None) -> str:
        """The scope of a tenant; None is the default tenant."""
        return "tenant:" + _checked("tenant", DEFAULT_TENANT if tenant is None else tenant)

    def of_shared(self, name: str) -> str:
        """The scope behind a shared name.

        Raises:
            AccessDenied: no such shared scope is configured.
        """
        if name not in self._shared:
            raise AccessDenied(f"no shared scope {name!r}; configured are {sorted(self._shared)}")
        return "shared:" + name

    def readable_by(self, tenant: str | None) -> list[str]:
        """The shared scopes a tenant may read."""
        who = DEFAULT_TENANT if tenant is None else tenant
        return ["shared:" + name for name, readers in self._shared.items() if {who, "*"} & readers]

    def salt_of(self, scope: str, request_salt: str = "") -> str:
        """The salt of a scope's namespace, hex; "" where there is none.

        Args:
            scope: in full, as `of_tenant` and `of_shared` return it.
            request_salt: what a request adds, for a namespace that only requests with the same one share.
        """
        if not self._salt and not request_salt:
            return ""
        # A scope is printable, so the zero byte keeps the two apart.
        salted = f"{scope}\0{request_salt}" if request_salt else scope
        return hmac.new(self._salt, salted.encode(), hashlib.sha256).hexdigest()


def _checked(what: str, name: str) -> str:
    if not name or ":" in name or not name.isprintable():
        raise InputError(f"{what} name {name!r} must be printable, not empty, and without a colon")
    return name
