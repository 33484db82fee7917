"""A scope that a question names and a snapshot does not have."""

from __future__ import annotations

from kvtrie.api.close_names import close_names
from kvtrie.api.inspection.explanation import UnknownScope
from kvtrie.prefix_tree.snapshot import Snapshot


def unknown_scope(snapshot: Snapshot, scope: str) -> UnknownScope | None:
    """`scope` with those of the snapshot that are like it; None if the snapshot has it."""
    known = {namespace.scope for namespace in snapshot.namespaces}
    known |= {stone.scope for stone in snapshot.tombstones}
    return None if scope in known else UnknownScope(scope, close_names(scope, known))
