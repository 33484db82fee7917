"""Scopes as users name them: in full, or without the kind."""

from __future__ import annotations

from kvtrie.prefix_tree.snapshot import Snapshot


def tenant_scope(snapshot: Snapshot, name: str) -> str:
    """The scope that `name` is: as it stands, or the tenant's of that name."""
    return _in_full(snapshot, name, "tenant:")


def shared_scope(snapshot: Snapshot, name: str) -> str:
    """The shared scope that `name` is."""
    return _in_full(snapshot, name, "shared:")


def _in_full(snapshot: Snapshot, name: str, kind: str) -> str:
    is_known = any(namespace.scope == name for namespace in snapshot.namespaces)
    return name if is_known or ":" in name else kind + name
